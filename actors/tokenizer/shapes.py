"""The shape of a whole answer (a JSON schema, a regular expression, a list of choices, a grammar, a
structural tag) as named grammars for llguidance."""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from actors.tokenizer.circles import circular
from actors.tokenizer.guidance import Grammar, Guidance, quoted, user_error
from actors.tokenizer.remarks import without_remarks
from actors.tokenizer.rewriting import rewritten, without_ours
from actors.tokenizer.schema import bounded
from actors.tokenizer.schema_keys import NotUnderstood
from actors.tokenizer.tags import TagGrammar
from protocols import structural_tags
from protocols.errors import UserError
from protocols.grammar import Shape, Syntax

_WHITESPACE = {"whitespace_pattern": r" |\n[ \t]{0,24}"}
"""Between the parts of JSON, where there is any: a space, or a new line with its indentation, not more."""

_MAX_NESTING = 100
"""Brackets within brackets of a grammar or regular expression at most; readers recurse over them."""

_MAX_RULES = 200
"""Rules of an EBNF grammar at most: their translation takes more than linear time."""

_OF_TREES = re.compile(r"^[?!]{1,2}(?=[a-z_]\w*\s*:)", re.MULTILINE)
"""Lark's marks in front of a rule, which say how its parse tree is built. No tree is built here."""

_NOT_BESIDE = (
    "uniqueItems, and texts that are excluded, are kept to only where the rest of the schema is simple "
    "(no patternProperties, and no pattern or format beside what is excluded), and minProperties only where "
    "names are required: two that are not could be the same."
)


class Shapes:
    """Makes grammars of shapes. Every method may raise UserError (400)."""

    def __init__(self, guidance: Guidance) -> None:
        self._guidance = guidance

    def named(self, shape: Shape) -> dict[str, Grammar]:
        """The grammar "shape", and those that it refers to, by name."""
        if shape.syntax is not Syntax.TAGS:
            return {"shape": self._alone(shape)}
        made = TagGrammar(
            shape.param, quoted, self._guidance.parts, functools.partial(self._part, shape.param)
        )
        format = msgspec.json.decode(shape.source, type=structural_tags.Format)
        return {"shape": {"lark_grammar": made.lark(format)}, **made.parts}

    def _alone(self, shape: Shape) -> Grammar:
        """The grammar of a shape that needs only one. A client's own is checked for its size first."""
        if shape.syntax is Syntax.JSON:
            return self.json(msgspec.json.decode(shape.source), shape.param)
        made = _translated(shape)
        if shape.syntax is Syntax.GRAMMAR:
            self._guidance.check_symbols(made, shape.param)
        return made

    def _part(
        self,
        param: str,
        part: structural_tags.JsonSchema | structural_tags.Regex | structural_tags.OwnGrammar,
    ) -> Grammar:
        """The grammar of a part of a structural tag."""
        match part:
            case structural_tags.JsonSchema(schema):
                return self.json(schema, param)
            case structural_tags.Regex(pattern):
                return self._alone(Shape(Syntax.REGEX, pattern, param))
            case structural_tags.OwnGrammar(source):
                return self._alone(Shape(Syntax.GRAMMAR, source, param))

    def json(self, schema: Any, param: str) -> Grammar:
        """The grammar of JSON that fits a schema: the schema itself where llguidance enforces all of it, else
        one that we write."""
        if reference := circular(schema):
            raise UserError(
                f"{param}: {reference[:100]} refers to itself, with nothing in between.", param=param
            )
        schema = rewritten(without_remarks(schema))
        wider = without_ours(schema)
        part = {"json_schema": {**wider, "x-guidance": _WHITESPACE} if isinstance(wider, dict) else wider}
        if wider == schema:
            return part
        self._guidance.check({"grammars": [part]}, param)
        try:
            return {"lark_grammar": bounded(schema)}
        except NotUnderstood as error:
            raise UserError(
                f"{param} cannot be used: {_NOT_BESIDE}", param=param, code="unsupported"
            ) from error

    def bounded(self, part: Grammar) -> Grammar:
        """In place of a schema that has been checked, a grammar in which everything that the schema leaves
        open has an end; the schema itself where we cannot write one."""
        if "json_schema" not in part:
            return part
        try:
            found: Grammar = {"lark_grammar": bounded(part["json_schema"])}
            self._guidance.check({"grammars": [found]}, "")
        except (NotUnderstood, UserError):
            return part
        return found


def is_written(shape: Shape) -> bool:
    """Whether a client has written the grammar itself, or parts of it."""
    return shape.syntax in (Syntax.GRAMMAR, Syntax.TAGS)


def _translated(shape: Shape) -> Grammar:
    """The shape's text as a Lark grammar."""
    match shape.syntax:
        case Syntax.CHOICE:
            choices = msgspec.json.decode(shape.source, type=list[str])
            return {"lark_grammar": "start: CHOICE\nCHOICE: " + " | ".join(map(quoted, choices))}
        case Syntax.REGEX:
            _check_nesting(shape)
            with user_error(shape.param):
                made = msgspec.json.decode(LLMatcher.grammar_from_regex(shape.source))
            return {"lark_grammar": made["grammars"][0]["lark_grammar"]}
        case Syntax.GRAMMAR:
            _check_nesting(shape)
            if shape.source.count("::=") > _MAX_RULES:
                raise UserError(f"{shape.param} has more than {_MAX_RULES} rules.", param=shape.param)
            with user_error(shape.param):
                return {"lark_grammar": any_to_lark(_OF_TREES.sub("", shape.source))}
        case Syntax.JSON | Syntax.TAGS:
            raise AssertionError("it is made from more than its text")


def _check_nesting(shape: Shape) -> None:
    depth = deepest = 0
    for char in shape.source:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    if deepest > _MAX_NESTING:
        raise UserError(f"{shape.param} is nested more than {_MAX_NESTING} levels deep.", param=shape.param)
