"""llguidance with one model's vocabulary: how a grammar names its tokens, and which grammars can be used."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from actors.tokenizer.codec import Codec
from protocols.config import ModelCard
from protocols.errors import UserError
from protocols.grammar import MAX_GRAMMAR, NARROW, limits_of

_MAX_SYMBOLS = 800
"""Symbols of a client's grammar at most, as llguidance counts them (a grammar of C has 125). The work for one
byte grows with their cube where rules refer to each other in a circle: about 20 ms for so many."""

_WALKS, _STEPS = 4, 12
"""How often, and for how many tokens, a client's grammar is followed before it is accepted."""

_NOT_SUPPORTED = "structured output does not work with the tokenizer of this model."

Grammar = dict[str, Any]
"""One grammar as llguidance takes it: a schema or a Lark text, by the name of its kind."""


class Guidance:
    """Reads the vocabulary when it is first needed."""

    def __init__(self, card: ModelCard, codec: Codec) -> None:
        self._card, self._codec = card, codec

    @functools.cached_property
    def vocabulary(self) -> LLTokenizer:
        """The model's, as llguidance has it. UserError where it cannot read it."""
        text, eos = self._codec.serialised(), list(self._card.eos) or None
        with user_error(None, _NOT_SUPPORTED, code="unsupported"):
            return LLTokenizer(text, n_vocab=self._card.vocab_size, eos_token=eos)

    def literal(self, text: str) -> str:
        """`text` in Lark: the special token of that name where there is one, else a literal."""
        token = self.specials.get(text)
        return quoted(text) if token is None else f"<[{token}]>"

    def parts(self, text: str) -> list[int | str]:
        """`text` taken apart: the ids of special tokens, and the pieces of text between them."""
        longest_first = sorted(map(re.escape, self.specials), key=len, reverse=True)
        found = re.split(f"({'|'.join(longest_first)})", text) if longest_first else [text]
        return [self.specials.get(part, part) for part in found if part]

    @functools.cached_property
    def specials(self) -> dict[str, int]:
        """Tokens that are no text to llguidance, by what they stand for: also those of thoughts and calls, in
        angle brackets, which their tokenizers call ordinary."""
        special = self.vocabulary.is_special_token
        return {text: token for text, token in self._codec.added.items() if special(token)}

    def check(self, grammar: Grammar, param: str, *, trial: bool = False) -> str:
        """The grammar as it travels. UserError when it is too large, broken, or allows nothing. param: the
        client's name of the field that asked for it. trial: whether to follow it for some tokens, too."""
        source = json.dumps(grammar)
        if len(source) > MAX_GRAMMAR:
            raise UserError(f"{param} makes a grammar of more than {MAX_GRAMMAR} bytes.", param=param)
        vocabulary = self.vocabulary
        with user_error(param):
            limits = LLParserLimits(**limits_of(source), verbose_errors=False)
            matcher = LLMatcher(vocabulary, source, log_level=0, limits=limits)
            error = matcher.get_error() if matcher.is_error() else ""
            if not error and (not any(matcher.compute_bitmask()) or matcher.is_error()):
                error = matcher.get_error() or "it allows no text"
            if not error and trial:
                error = _ambiguity(matcher, vocabulary.eos_tokens)
        if error:
            raise UserError(f"{param} cannot be used: {_sentence(error)}", param=param)
        return source

    def check_symbols(self, grammar: Grammar, param: str) -> None:
        """UserError where a client's grammar has too many symbols."""
        vocabulary, source = self.vocabulary, json.dumps({"grammars": [grammar]})
        with user_error(param):
            limits = LLParserLimits(**{**NARROW, "max_grammar_size": _MAX_SYMBOLS}, verbose_errors=False)
            error = LLMatcher(vocabulary, source, log_level=0, limits=limits).get_error()
        if "grammar size" in error:
            raise UserError(f"{param} has more than {_MAX_SYMBOLS} symbols.", param=param)


@contextlib.contextmanager
def user_error(param: str | None, message: str = "", *, code: str | None = None) -> Iterator[None]:
    """Around a call of the library: whatever it raises becomes a UserError, also a panic of its Rust code,
    which is no Exception."""
    try:
        yield
    except BaseException as raised:
        if isinstance(raised, Exception):
            reason = _sentence(str(raised))
        elif type(raised).__name__ == "PanicException":
            reason = "it is more than the library can read."
        else:
            raise
        raise UserError(message or f"{param} cannot be used: {reason}", param=param, code=code) from raised


def _ambiguity(matcher: LLMatcher, eos: list[int]) -> str:
    """What goes wrong when a grammar is followed for some tokens, "" for nothing."""
    for walk in range(_WALKS):
        for step in range(_STEPS):
            allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            tokens = np.setdiff1d(np.flatnonzero(allowed), eos)
            if not len(tokens) or matcher.is_error():
                break
            matcher.consume_token(int(tokens[(walk * 7919 + step * 104729) % len(tokens)]))
        if matcher.is_error():
            return f"it is too ambiguous: {matcher.get_error()}"
        matcher.reset()
    return ""


def quoted(text: str) -> str:
    """A text as a literal of Lark."""
    return json.dumps(text, ensure_ascii=False)


def _sentence(error: str) -> str:
    """The library's message in one line: what is wrong, without where in our own grammar it is."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    told = next(
        (line for line in lines if line.startswith("error: ")), lines[0] if lines else "unknown error"
    )
    if "NoExtension" in told:
        return "it allows no text."
    if "coerce_one_of" in told:
        return "one text could fit two parts of a oneOf: let other values of a required member part them."
    told = re.sub(r"^at \d+\(\d+\): ", "", told.removeprefix("error: "))
    return told[:300].rstrip(".:") + "."
