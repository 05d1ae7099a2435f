"""What a client may require of the text itself: a shape that it must have, and calls of functions within it.

A request carries `Rules`. The tokenizer actor, which knows the model's formats of calls and of thoughts,
makes one grammar of them (`SamplingParams.grammar`), which the sampler enforces.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

MAX_SOURCE = 64 * 1024
"""Bytes of one schema or list of choices at most; of all schemas of tools, too."""

MAX_PATTERN = 16 * 1024
"""Bytes of one regular expression or grammar at most."""

MAX_GRAMMAR = 192 * 1024
"""Bytes of the grammar that is made of them at most."""


class Syntax(enum.StrEnum):
    """The language of a shape: a JSON schema, a regular expression (of Rust's `regex`, without look-around),
    a JSON list of texts, a grammar (Lark, or EBNF as GBNF writes it), or a structural tag's format."""

    JSON = "json"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    TAGS = "structural_tag"


class Shape(msgspec.Struct, frozen=True, array_like=True):
    """What the whole text must be. param: the client's name of the field, for refusals."""

    syntax: Syntax
    source: str
    param: str = ""


class ToolRule(msgspec.Struct, frozen=True, array_like=True):
    """A function whose calls must be well-formed. parameters: the JSON schema of its arguments."""

    name: str
    parameters: str = "{}"


class Rules(msgspec.Struct, frozen=True, array_like=True):
    """Everything that is required of an answer's text.

    tools: the functions that may be called, where their calls are to be enforced. forced: it must be a call.
    parallel: there may be several calls.
    """

    shape: Shape | None = None
    tools: tuple[ToolRule, ...] = ()
    forced: bool = False
    parallel: bool = True

    def __bool__(self) -> bool:
        """Whether anything is required."""
        return self.shape is not None or bool(self.tools)


LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 5_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
}
"""What llguidance may spend on one grammar, in its own units: about 20 ms to read it, 10 ms for a
token, 40 MB in all. They count work and not time, so a grammar is good or bad on every machine alike."""

CACHED_GRAMMARS = 64
"""Compiled grammars kept at most."""

CACHED_BYTES = 4 * MAX_GRAMMAR
"""Bytes of the sources of the compiled grammars kept at most."""

NARROW = {**LIMITS, "max_items_in_row": 200}
"""The same for a grammar that a client has written, which may be ambiguous: the work for a token grows with
the cube of the ways in which the text so far can be read."""


class _Written(msgspec.Struct):
    written: bool = False


def limits_of(grammar: str) -> dict[str, Any]:
    """The limits for a grammar, which says itself whether a client has `written` part of it."""
    return NARROW if msgspec.json.decode(grammar, type=_Written).written else LIMITS
