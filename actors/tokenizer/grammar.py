"""One grammar for the sampler, made of everything that a client asks of an answer.

    answer: [thought] (calls | shape | text)

A thought is free text; calls are in the model's own format, with arguments that fit the tools' schemas; text
is free, except for what would begin a call. Every grammar is compiled here once before it is sent down,
within limits that count work, so that an executor never meets one that is broken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from typing import Any

import msgspec

from actors.answers.calls import HermesCalls, MistralCalls
from actors.answers.formats import TOOL_FORMATS
from actors.tokenizer.codec import Codec
from actors.tokenizer.guidance import Grammar, Guidance, quoted
from actors.tokenizer.shapes import Shapes, is_written
from protocols.config import Config
from protocols.errors import UserError
from protocols.grammar import Rules, ToolRule

_UNFORCED = '%llguidance {"no_forcing": true}'
"""In front of a grammar that a client has written: do not look ahead for the text that it forces, which may
have no end."""


@dataclasses.dataclass(frozen=True)
class _Calls:
    """One call or several, in Lark: what opens the first, the rest of it, and what may follow."""

    opening: str
    first: str
    more: str

    def __str__(self) -> str:
        return f"{self.opening} {self.first} {self.more}"


class GrammarMaker:
    """Makes grammars for one model. guidance: what it asks of llguidance."""

    def __init__(self, config: Config, codec: Codec) -> None:
        self.guidance = Guidance(config.model, codec)
        self._parser = config.tool_parser
        self._tools = TOOL_FORMATS.get(config.tool_parser)
        self._shapes = Shapes(self.guidance)

    def preload(self) -> None:
        """Read the vocabulary ahead of the first request. Where it cannot be read, that request is told."""
        with contextlib.suppress(UserError):
            _ = self.guidance.vocabulary

    def __call__(self, rules: Rules, thoughts: tuple[str, ...] = (), *, thinking: bool = False) -> str:
        """The grammar. thoughts: the opening and closing tag of a thought that may come first, if any;
        thinking: whether the prompt ends inside one. Raises UserError (400)."""
        if rules.tools and self._tools is None:
            raise UserError(
                "the format in which this model calls functions is not known: start with --tool-parser.",
                param="tool_choice",
                code="unsupported",
            )
        parts: dict[str, Grammar] = {}
        written = rules.shape is not None and is_written(rules.shape)
        if rules.shape is not None:
            parts = self._shapes.named(rules.shape)
            alone = [self._top(Rules(rules.shape), (), False), *_named(parts)]
            self.guidance.check({"grammars": alone, "written": written}, rules.shape.param, trial=written)
        for number, tool in enumerate(rules.tools):
            param = f"tools[{number}].parameters"
            parts[f"tool_{number}"] = self._shapes.json(_arguments(tool), param)
            self.guidance.check({"grammars": [parts[f"tool_{number}"]]}, param)
        parts = {name: self._shapes.bounded(part) for name, part in parts.items()}
        whole = {"grammars": [self._top(rules, thoughts, thinking), *_named(parts)], "written": written}
        param = "tools" if rules.tools else rules.shape.param if rules.shape else ""
        return self.guidance.check(whole, param)

    def _top(self, rules: Rules, thoughts: tuple[str, ...], thinking: bool) -> Grammar:
        written = rules.shape is not None and is_written(rules.shape)
        lark = [_UNFORCED if written else "%llguidance {}"]
        if not (rules.tools or thoughts):
            return {"name": "top", "lark_grammar": "\n".join([*lark, "start: @shape"])}
        body = self._body(rules, lark)
        if thoughts:
            body = f"{self._thought(thoughts, thinking, lark)} ({body})"
        return {"name": "top", "lark_grammar": "\n".join([*lark, f"start: {body}"])}

    def _thought(self, tags: tuple[str, ...], thinking: bool, lark: list[str]) -> str:
        opening, closing = (self.guidance.literal(tag) for tag in tags)
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
        match self._parser:
            case "hermes":
                opening, closing = (
                    self.guidance.literal(HermesCalls.OPEN),
                    self.guidance.literal(HermesCalls.CLOSE),
                )
                one = f'"\\n" call "\\n" {closing}'
                return _Calls(opening, one, f'("\\n" {opening} {one})*' if more else "")
            case "llama3":
                return _Calls("", "call", '("; " call)*' if more else "")
            case _:
                opening = self.guidance.literal(MistralCalls.OPEN)
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
            return f"{quoted(tool.name)} {self.guidance.literal(MistralCalls.ARGS)} @tool_{number}"
        key = "parameters" if self._parser == "llama3" else "arguments"
        # One literal a JSON token: the lexer takes the longest match and does not backtrack.
        head = ("{", '"name"', ":", " ", json.dumps(tool.name), ",", " ", f'"{key}"', ":", " ")
        return f'{" ".join(map(quoted, head))} @tool_{number} "}}"'

    @property
    def _by_name(self) -> bool:
        """Whether this is a Mistral model that writes calls in the later format."""
        return self._parser == "mistral" and MistralCalls.ARGS in self.guidance.specials


def _named(parts: dict[str, Grammar]) -> list[Grammar]:
    return [{"name": name, **grammar} for name, grammar in parts.items()]


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
