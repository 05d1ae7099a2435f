"""From what a client asks of an answer to the one grammar that the sampler keeps to, or why there is none.

    answer: [thought] (calls | shape | text)

A thought is free; calls are as the model's format has them, their arguments by the schemas; text is free, but
for what would begin a call. Everything is compiled here once before it goes down, within limits that count
work, so that an executor never meets a grammar that is broken or has no end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from actors.answers.calls import HermesCalls, MistralCalls
from actors.answers.formats import TOOL_FORMATS
from actors.tokenizer.circles import circular
from actors.tokenizer.codec import Codec
from actors.tokenizer.remarks import without_remarks
from actors.tokenizer.rewriting import rewritten, without_ours
from actors.tokenizer.schema import bounded
from actors.tokenizer.schema_keys import NotUnderstood
from actors.tokenizer.tags import TagGrammar
from protocols import structural_tags
from protocols.config import Config
from protocols.errors import UserError
from protocols.grammar import MAX_GRAMMAR, NARROW, Rules, Shape, Syntax, ToolRule, limits_of

_WHITESPACE = {"whitespace_pattern": r" |\n[ \t]{0,24}"}
"""Between the parts of JSON, where there is any: a space, or a new line with its indentation, not more."""

_MAX_NESTING = 100
"""Brackets within brackets of a grammar or regular expression at most; readers recurse over them."""

_MAX_RULES = 200
"""Rules of an EBNF grammar at most: their translation takes more than linear time."""

_MAX_SYMBOLS = 800
"""Symbols of a client's grammar at most, as llguidance counts them (a grammar of C has 125). The work for one
byte grows with their cube where rules mean each other in a circle: about 20 ms for so many."""

_WALKS, _STEPS = 4, 12
"""How often, and for how many tokens, a client's grammar is followed before it is accepted."""

_OF_TREES = re.compile(r"^[?!]{1,2}(?=[a-z_]\w*\s*:)", re.MULTILINE)
"""In front of a rule of Lark: what the tree of a text shall be like, which nobody builds here."""

_UNFORCED = '%llguidance {"no_forcing": true}'
"""In front of what a client has written: what it forces may have no end, and is not looked for ahead."""

_NOT_BESIDE = (
    "uniqueItems, and texts that are excluded, are kept to only where the rest of the schema is simple: "
    "no patternProperties, and no pattern or format beside what is excluded."
)
_NOT_SUPPORTED = "structured output does not work with the tokenizer of this model."

Grammar = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Calls:
    """One call or several, in Lark: what opens the first, the rest of it, and what may follow."""

    opening: str
    first: str
    more: str

    def __str__(self) -> str:
        return f"{self.opening} {self.first} {self.more}"


class GrammarMaker:
    """Makes grammars for one model."""

    def __init__(self, config: Config, codec: Codec) -> None:
        self._config, self._codec = config, codec
        self._tools = TOOL_FORMATS.get(config.tool_parser)
        self._tokenizer: LLTokenizer | None = None

    def preload(self) -> None:
        """Read the vocabulary ahead of the first request; who asks is told where that cannot be done."""
        with contextlib.suppress(UserError):
            self._vocabulary()

    def __call__(self, rules: Rules, thoughts: tuple[str, ...] = (), *, thinking: bool = False) -> str:
        """The grammar. thoughts: the tags of those that may come first; thinking: the prompt ends in the
        midst of one. Raises UserError (400)."""
        if rules.tools and self._tools is None:
            raise UserError(
                "the format in which this model calls functions is not known: start with --tool-parser.",
                param="tool_choice",
                code="unsupported",
            )
        parts: dict[str, Grammar] = {}
        written = rules.shape is not None and _is_written(rules.shape)
        if rules.shape is not None:
            parts = self._shape(rules.shape)
            alone = [self._top(Rules(rules.shape), (), False), *_named(parts)]
            self._check({"grammars": alone, "written": written}, rules.shape.param, trial=written)
        for number, tool in enumerate(rules.tools):
            param = f"tools[{number}].parameters"
            parts[f"tool_{number}"] = self._json(_arguments(tool), param)
            self._check({"grammars": [parts[f"tool_{number}"]]}, param)
        parts = {name: self._bounded(part) for name, part in parts.items()}
        whole = {"grammars": [self._top(rules, thoughts, thinking), *_named(parts)], "written": written}
        return self._check(whole, "tools" if rules.tools else rules.shape.param if rules.shape else "")

    def _bounded(self, part: Grammar) -> Grammar:
        """In place of a schema that has been checked, a grammar in which what it leaves open has an end; the
        schema itself where there is none."""
        if "json_schema" not in part:
            return part
        try:
            found: Grammar = {"lark_grammar": bounded(part["json_schema"])}
            self._check({"grammars": [found]}, "")
        except (NotUnderstood, UserError):
            return part
        return found

    def _shape(self, shape: Shape) -> dict[str, Grammar]:
        """The grammar "shape", and what it makes use of."""
        if shape.syntax is not Syntax.TAGS:
            return {"shape": self._alone(shape)}
        made = TagGrammar(shape.param, _quoted, self._parts, functools.partial(self._part, shape.param))
        format = msgspec.json.decode(shape.source, type=structural_tags.Format)
        return {"shape": {"lark_grammar": made.lark(format)}, **made.parts}

    def _alone(self, shape: Shape) -> Grammar:
        """A shape that is one grammar. One that a client has written is checked for its size first."""
        if shape.syntax is Syntax.JSON:
            return self._json(msgspec.json.decode(shape.source), shape.param)
        made = _shape(shape)
        if shape.syntax is Syntax.GRAMMAR:
            limits = LLParserLimits(**{**NARROW, "max_grammar_size": _MAX_SYMBOLS}, verbose_errors=False)
            with _user_error(shape.param):
                matcher = LLMatcher(
                    self._vocabulary(), json.dumps({"grammars": [made]}), log_level=0, limits=limits
                )
                if "grammar size" in matcher.get_error():
                    raise UserError(f"{shape.param} has more than {_MAX_SYMBOLS} symbols.", param=shape.param)
        return made

    def _part(
        self,
        param: str,
        part: structural_tags.JsonSchema | structural_tags.Regex | structural_tags.OwnGrammar,
    ) -> Grammar:
        """Of a structural tag."""
        match part:
            case structural_tags.JsonSchema(schema):
                return self._json(schema, param)
            case structural_tags.Regex(pattern):
                return self._alone(Shape(Syntax.REGEX, pattern, param))
            case structural_tags.OwnGrammar(source):
                return self._alone(Shape(Syntax.GRAMMAR, source, param))

    def _json(self, schema: Any, param: str) -> Grammar:
        """JSON that fits a schema: as such where llguidance keeps to all of it, else as a grammar of ours."""
        if reference := circular(schema):
            raise UserError(f"{param}: {reference[:100]} means itself, with nothing in between.", param=param)
        schema = rewritten(without_remarks(schema))
        wider = without_ours(schema)
        part = {"json_schema": {**wider, "x-guidance": _WHITESPACE} if isinstance(wider, dict) else wider}
        if wider == schema:
            return part
        self._check({"grammars": [part]}, param)
        try:
            return {"lark_grammar": bounded(schema)}
        except NotUnderstood as error:
            raise UserError(
                f"{param} cannot be used: {_NOT_BESIDE}", param=param, code="unsupported"
            ) from error

    def _top(self, rules: Rules, thoughts: tuple[str, ...], thinking: bool) -> Grammar:
        written = rules.shape is not None and _is_written(rules.shape)
        lark = [_UNFORCED if written else "%llguidance {}"]
        if not (rules.tools or thoughts):
            return {"name": "top", "lark_grammar": "\n".join([*lark, "start: @shape"])}
        body = self._body(rules, lark)
        if thoughts:
            body = f"{self._thought(thoughts, thinking, lark)} ({body})"
        return {"name": "top", "lark_grammar": "\n".join([*lark, f"start: {body}"])}

    def _thought(self, tags: tuple[str, ...], thinking: bool, lark: list[str]) -> str:
        opening, closing = (self._literal(tag) for tag in tags)
        lark += ["SPACE: /\\s{1,8}/", *_up_to("inside", closing)]
        if thinking:
            return "inside SPACE?"
        lark.append(f"thought: {opening} inside SPACE?")
        return "thought?"

    def _body(self, rules: Rules, lark: list[str]) -> str:
        if not rules.tools:
            return "@shape"
        lark.append("call: " + " | ".join(self._call(i, tool) for i, tool in enumerate(rules.tools)))
        calls = self._calls(more=rules.parallel)
        if rules.forced:
            return str(calls)
        if rules.shape is not None:
            return f"{calls} | @shape"
        return self._amid_text(calls, lark)

    def _calls(self, *, more: bool) -> _Calls:
        match self._config.tool_parser:
            case "hermes":
                opening, closing = self._literal(HermesCalls.OPEN), self._literal(HermesCalls.CLOSE)
                one = f'"\\n" call "\\n" {closing}'
                return _Calls(opening, one, f'("\\n" {opening} {one})*' if more else "")
            case "llama3":
                return _Calls("", "call", '("; " call)*' if more else "")
            case _:
                opening = self._literal(MistralCalls.OPEN)
                if self._by_name:
                    return _Calls(opening, "call", f"({opening} call)*" if more else "")
                return _Calls(opening, '"[" call', '(", " call)* "]"' if more else '"]"')

    def _amid_text(self, calls: _Calls, lark: list[str]) -> str:
        """Text in which there may be calls."""
        if not calls.opening:
            lark.append(r"FREE: /(?s:[^\s{].*)?/")
            return f"{calls} | FREE"
        lark += [_without(calls.opening), r"TAIL: /\s{1,8}/", *_up_to("before", calls.opening)]
        return f"FREE | before {calls.first} {calls.more} TAIL?"

    def _call(self, number: int, tool: ToolRule) -> str:
        if self._by_name:
            return f"{_quoted(tool.name)} {self._literal(MistralCalls.ARGS)} @tool_{number}"
        key = "parameters" if self._config.tool_parser == "llama3" else "arguments"
        # Piece by piece, as JSON is read: a lexer that has taken a longer piece for one does not turn back.
        head = ("{", '"name"', ":", " ", json.dumps(tool.name), ",", " ", f'"{key}"', ":", " ")
        return f'{" ".join(map(_quoted, head))} @tool_{number} "}}"'

    @property
    def _by_name(self) -> bool:
        """Whether a Mistral model writes calls in the later format."""
        return self._config.tool_parser == "mistral" and MistralCalls.ARGS in self._specials

    def _literal(self, text: str) -> str:
        """In Lark: the special token of that name where there is one, else the text."""
        token = self._specials.get(text)
        return _quoted(text) if token is None else f"<[{token}]>"

    def _parts(self, text: str) -> list[int | str]:
        """What a text consists of: ids of special tokens, and the text between them."""
        longest_first = sorted(map(re.escape, self._specials), key=len, reverse=True)
        found = re.split(f"({'|'.join(longest_first)})", text) if longest_first else [text]
        return [self._specials.get(part, part) for part in found if part]

    @functools.cached_property
    def _specials(self) -> dict[str, int]:
        """Tokens that are no text to llguidance, by what they stand for: also those of thoughts and calls, in
        angle brackets, which their tokenizers call ordinary."""
        vocabulary = self._vocabulary()
        return {
            text: token for text, token in self._codec.added.items() if vocabulary.is_special_token(token)
        }

    def _check(self, grammar: Grammar, param: str, *, trial: bool = False) -> str:
        """The grammar as it travels. UserError when it is too large, broken, or allows nothing. trial:
        whether to follow it a little way, too."""
        source = json.dumps(grammar)
        if len(source) > MAX_GRAMMAR:
            raise UserError(f"{param} makes a grammar of more than {MAX_GRAMMAR} bytes.", param=param)
        vocabulary = self._vocabulary()
        with _user_error(param):
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

    def _vocabulary(self) -> LLTokenizer:
        if self._tokenizer is None:
            model = self._config.model
            text, eos = self._codec.serialised(), list(model.eos) or None
            with _user_error(None, _NOT_SUPPORTED, code="unsupported"):
                self._tokenizer = LLTokenizer(text, n_vocab=model.vocab_size, eos_token=eos)
        return self._tokenizer


@contextlib.contextmanager
def _user_error(param: str | None, message: str = "", *, code: str | None = None) -> Iterator[None]:
    """Around a call of the library: what it raises becomes a UserError. It may be any Exception, and a panic,
    which is none."""
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
    """What goes wrong where a grammar is followed a little way, "" for nothing."""
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


def _is_written(shape: Shape) -> bool:
    """Whether a client has written the grammar, or parts of it."""
    return shape.syntax in (Syntax.GRAMMAR, Syntax.TAGS)


def _named(parts: dict[str, Grammar]) -> list[Grammar]:
    return [{"name": name, **grammar} for name, grammar in parts.items()]


def _shape(shape: Shape) -> Grammar:
    match shape.syntax:
        case Syntax.CHOICE:
            choices = msgspec.json.decode(shape.source, type=list[str])
            return {"lark_grammar": "start: CHOICE\nCHOICE: " + " | ".join(map(_quoted, choices))}
        case Syntax.REGEX:
            _check_nesting(shape)
            with _user_error(shape.param):
                made = msgspec.json.decode(LLMatcher.grammar_from_regex(shape.source))
            return {"lark_grammar": made["grammars"][0]["lark_grammar"]}
        case Syntax.GRAMMAR:
            _check_nesting(shape)
            if shape.source.count("::=") > _MAX_RULES:
                raise UserError(f"{shape.param} has more than {_MAX_RULES} rules.", param=shape.param)
            with _user_error(shape.param):
                return {"lark_grammar": any_to_lark(_OF_TREES.sub("", shape.source))}
        case Syntax.JSON | Syntax.TAGS:
            raise AssertionError("it is made from more than its text")


def _arguments(tool: ToolRule) -> Any:
    """The schema of a call's arguments, which are an object."""
    schema = msgspec.json.decode(tool.parameters)
    if isinstance(schema, dict) and not {"type", "$ref", "anyOf", "oneOf", "allOf"} & set(schema):
        return {"type": "object", **schema}
    return schema


def _without(opening: str) -> str:
    """A terminal: text without what opens a call; a special token is no text anyway."""
    if opening.startswith("<["):
        return "FREE: /(?s:.*)/"
    return f"FREE: /(?s:.*)/ & ~/(?s:.*){re.escape(json.loads(opening))}(?s:.*)/"


def _up_to(name: str, closing: str) -> list[str]:
    """A rule: any text, then the first `closing`."""
    if closing.startswith("<["):
        return [f"{name.upper()}: /(?s:.*)/", f"{name}: {name.upper()} {closing}"]
    return [f"{name.upper()}: /(?s:.*)/", f"{name}[lazy]: {name.upper()} {closing}"]


def _quoted(text: str) -> str:
    """A text as a literal of Lark."""
    return json.dumps(text, ensure_ascii=False)


def _check_nesting(shape: Shape) -> None:
    depth = deepest = 0
    for char in shape.source:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    if deepest > _MAX_NESTING:
        raise UserError(f"{shape.param} is nested more than {_MAX_NESTING} levels deep.", param=shape.param)


def _sentence(error: str) -> str:
    """The library's message in one line: what is wrong, without where in our own grammar it is."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    told = next(
        (line for line in lines if line.startswith("error: ")), lines[0] if lines else "unknown error"
    )
    if "NoExtension" in told:
        return "it allows no text."
    told = re.sub(r"^at \d+\(\d+\): ", "", told.removeprefix("error: "))
    return told[:300].rstrip(".:") + "."
