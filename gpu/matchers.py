"""Matchers of llguidance: what walks a grammar token by token and tells which may follow.

What was compiled is kept for the next request that asks for the same, and so are matchers that have followed
a sequence to its end: they have worked out most states of their lexer, so that their masks cost a fraction of
a fresh one's. What they tell is the same, but for their limits, of which they have used up a part: a used
matcher's failure says nothing, and a fresh one then decides.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, deque

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from protocols.config import ModelCard
from protocols.grammar import CACHED_BYTES, CACHED_GRAMMARS, limits_of

_WORN = 4096
"""Tokens after which a matcher is not used again: its lexer grows with what it has seen."""


def load_tokenizer(card: ModelCard) -> LLTokenizer:
    """The model's vocabulary as llguidance needs it; some tenths of a second for a large one."""
    path = card.file("tokenizer.json")
    text = path.read_text(encoding="utf-8") if path.is_file() else _converted(card.path)
    return LLTokenizer(text, n_vocab=card.vocab_size, eos_token=list(card.eos) or None)


def _converted(directory: str) -> str:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    return str(found.backend_tokenizer.to_str())


@dataclasses.dataclass(frozen=True, slots=True)
class Lent:
    """A matcher at the start of a grammar. served: tokens that it has followed before."""

    matcher: LLMatcher
    grammar: str
    served: int = 0


class Matchers:
    """Lends matchers for grammars of one model. Compiled grammars are kept, the latest used, up to a number
    and a size, and `idle` used matchers of whichever. `lend` and `fresh` are for one thread, `back` is for
    another.
    """

    def __init__(self, card: ModelCard, idle: int) -> None:
        self._card = card
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._idle: deque[Lent] = deque(maxlen=idle)

    @property
    def tokenizer(self) -> LLTokenizer:
        """The vocabulary, read when it is first asked for."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._card)
        return self._tokenizer

    def lend(self, grammar: str) -> Lent:
        """A matcher for one sequence."""
        for lent in list(self._idle):
            if lent.grammar == grammar:
                try:
                    self._idle.remove(lent)
                except ValueError:
                    continue  # newer ones have pushed it out just now
                return lent
        return self.fresh(grammar)

    def fresh(self, grammar: str) -> Lent:
        """A matcher that nobody has used."""
        return Lent(self._compile(grammar).deep_copy(), grammar)

    def back(self, lent: Lent, served: int) -> None:
        """Its sequence, of so many tokens, is over."""
        served += lent.served
        if served < _WORN and not lent.matcher.is_error() and lent.matcher.reset():
            self._idle.append(dataclasses.replace(lent, served=served))

    def _compile(self, grammar: str) -> LLMatcher:
        compiled = self._compiled.get(grammar)
        if compiled is None:
            limits = LLParserLimits(**limits_of(grammar), verbose_errors=False)
            compiled = LLMatcher(self.tokenizer, grammar, log_level=0, limits=limits)
            self._compiled[grammar] = compiled
        self._compiled.move_to_end(grammar)
        while len(self._compiled) > CACHED_GRAMMARS or sum(map(len, self._compiled)) > CACHED_BYTES:
            self._compiled.popitem(last=False)
        return compiled
