"""Keywords that are rewritten before a grammar is made: texts that fit are taken, others are not, and what
could fit two parts of a `oneOf` is never made."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import UserError
from protocols.grammar import Rules, Shape, Syntax
from tests.actors.tokenizer.test_grammar import _maker
from tests.actors.tokenizer.test_grammar import takes as grammar_takes
from tests.actors.tokenizer.test_schema import Schema, takes


def _kind(kind: str, *required: str) -> Schema:
    """As pydantic writes one part of a discriminated union."""
    properties = {
        "k": {"const": kind, "default": kind, "title": "K", "type": "string"},
        "v": {"type": "integer"},
    }
    return {"type": "object", "title": kind, "properties": properties, "required": [*required]}


def _union(*required: str) -> Schema:
    return {
        "$defs": {"A": _kind("a", *required), "B": _kind("b", *required)},
        "discriminator": {"mapping": {"a": "#/$defs/A", "b": "#/$defs/B"}, "propertyName": "k"},
        "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
    }


def _object(**more: Any) -> Schema:
    properties = {name: {"type": "integer"} for name in "abc"}
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


COLOURS = {"enum": ["r", "g", 1, True]}
ONE_NAME = [{"required": ["a"]}, {"required": ["b"]}]
OPEN = [{**_object(required=[name]), "additionalProperties": True} for name in "ab"]

DIFFERENT = {"type": "array", "items": COLOURS, "uniqueItems": True}
TEXTS = [{"type": "string", "maxLength": 2}, {"type": "string", "minLength": 4}]
INTEGERS = [{"type": "integer", "maximum": 2}, {"type": "integer", "minimum": 4}]

EXACT: list[tuple[Schema, list[Any]]] = [
    (_union("k", "v"), [{"k": "a", "v": 1}, {"v": 1}, {"k": "b"}, {"k": "b", "v": 2}]),
    (_union(), [{"k": "a", "v": 1}, {"v": 1}, {"k": "b"}, {"k": "c"}]),
    ({"oneOf": TEXTS}, ["a", "abc", "abcd"]),
    ({"oneOf": INTEGERS}, [1, 3, 4]),
    (_object(oneOf=ONE_NAME), [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}, {}, {"c": 1}, {"a": 1, "c": 1}]),
    (_object(anyOf=ONE_NAME), [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}, {}, {"c": 1}]),
    (DIFFERENT, [[], ["r"], ["g", "r"], ["r", "r"], [1, True, "r", "g"]]),
    ({**DIFFERENT, "minItems": 2, "maxItems": 3}, [["r"], ["g", 1], [1, "g", "r"], [1, True, "r", "g"]]),
    ({"type": "array", "items": {"type": "boolean"}, "uniqueItems": True}, [[True, False], [True, True]]),
    ({"type": "array", "items": {"type": "null"}, "uniqueItems": False}, [[None, None], []]),
    ({"not": {"type": "string"}}, [1, "a", None, {}]),
    ({"type": ["string", "null"], "not": {"enum": ["a", "b\n", None]}}, ["a", "b\n", None, "b", "aa", ""]),
    ({"enum": ["a", "b", 1], "not": {"const": "a"}}, ["a", "b", 1]),
    (_object(**{"not": {"anyOf": ONE_NAME}}), [{"a": 1}, {"b": 1}, {"c": 1}, {}]),
    (_object(propertyNames={"enum": ["a"]}), [{"a": 1}, {"b": 1}, {}]),
    ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, [{"a": 1}, {"b": 1}]),
    ({"allOf": [{"$ref": "#/$defs/A"}, ONE_NAME[0]], "$defs": {"A": _object()}}, [{"a": 1}, {"b": 1}]),
    ({"const": "a", "enum": ["b", "a"], "not": {"const": "c"}}, ["a", "b"]),
    ({"type": "array", "items": {"const": 1, "enum": [1, 2]}, "uniqueItems": True}, [[1], [2]]),
    (_object(propertyNames={"const": "a", "enum": ["a", "b"]}), [{"a": 1}, {"b": 1}]),
    ({"type": "object", "required": ["a"], "minProperties": 2}, [{"a": 1}, {"a": 1, "b": 1}]),
    ({"type": "object", "required": ["a", "a"], "minProperties": 2}, [{"a": 1}, {"a": 1, "b": 1}]),
]


@pytest.mark.parametrize(("schema", "values"), EXACT)
def test_what_fits_is_taken_and_nothing_else(schema: Schema, values: list[Any]) -> None:
    """But for a discriminator that is missing, of which nobody knows whose it would be."""
    judge = jsonschema.Draft202012Validator(schema)
    for value in values:
        assert takes(schema, json.dumps(value)) == judge.is_valid(value), value


@pytest.mark.parametrize("names", [{"maxLength": 1}, {"pattern": "^[a-z]$"}])
def test_names_by_their_form(names: Schema) -> None:
    shape = Shape(Syntax.JSON, json.dumps({"type": "object", "propertyNames": names}), "p")
    assert grammar_takes(_maker(), Rules(shape), '{"a": 1}')
    assert not grammar_takes(_maker(), Rules(shape), '{"ab": 1}')


def test_of_parts_that_overlap_each_leaves_out_what_the_other_requires() -> None:
    assert takes({"oneOf": OPEN}, '{"a": 1}') and takes({"oneOf": OPEN}, '{"b": 1, "c": 2}')
    assert not takes({"oneOf": OPEN}, '{"a": 1, "b": 1}')


TWO: Schema = {"$defs": {"2": {"enum": ["a", "bc"]}}}
PAIR = {"items": [{"type": "null"}], "additionalItems": {"type": "boolean"}}


@pytest.mark.parametrize(
    ("schema", "judge", "values"),
    [
        ({"minimum": 0, "exclusiveMinimum": True}, jsonschema.Draft4Validator, [0, 1]),
        ({"maximum": 0, "exclusiveMaximum": False}, jsonschema.Draft4Validator, [0, 1]),
        (PAIR, jsonschema.Draft7Validator, [[None, True], [None, 1], [True]]),
        ({"items": {"type": "null"}, "additionalItems": False}, jsonschema.Draft7Validator, [[None], [1]]),
    ],
)
def test_earlier_drafts(schema: Schema, judge: Any, values: list[Any]) -> None:
    for value in values:
        assert takes(schema, json.dumps(value)) == judge(schema).is_valid(value), value


def test_nullable_is_one_more_type() -> None:
    assert takes({"type": "integer", "nullable": True, "minimum": 3}, "null")
    assert not takes({"type": "integer", "nullable": False}, "null")
    assert not takes({"type": "string", "enum": ["a"], "nullable": True}, "null")


def test_keywords_that_nobody_knows_say_nothing() -> None:
    schema = {
        "$schema": "https://example.com/own",
        "x-order": {"type": "string"},
        "strict": True,
        "type": "object",
        "properties": {"title": {"type": "integer", "example": 3, "x-y": 1}, "x-y": {"type": "null"}},
        "required": ["title", "x-y"],
        "additionalProperties": False,
    }
    assert takes(schema, '{"title": 3, "x-y": null}')
    assert not takes(schema, '{"title": 3}')


def test_references_may_point_under_keywords_that_nobody_knows() -> None:
    node = {
        "type": "object",
        "title": "Node",
        "properties": {"next": {"$ref": "#/components/schemas/Node"}, "v": {"type": "null", "x-y": 1}},
        "required": ["v"],
    }
    schema = {"$ref": "#/components/schemas/Node", "components": {"schemas": {"Node": node, "Other": {}}}}
    assert takes(schema, '{"next": {"v": null}, "v": null}')
    assert not takes(schema, '{"next": {}, "v": null}')


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [{"type": "string", "nullable": True}, {"type": "null"}]}, "oneOf"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "items": {"enum": [*range(9)]}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "a", "not": {"const": "a"}}, "pattern"),
        ({"type": "number", "not": {"type": "integer"}}, "not"),
        ({"not": {}}, "not"),
        ({"required": ["a"], "not": {"required": ["a"]}}, "not"),
        ({"type": "object", "propertyNames": {"type": "boolean"}}, "propertyNames"),
        ({"type": "object", "propertyNames": {"type": "boolean", "pattern": "a"}}, "propertyNames"),
        ({**TWO, "type": "object", "propertyNames": {"$ref": "#/$defs/2", "maxLength": 1}}, "propertyNames"),
        ({**TWO, "items": {"$ref": "#/$defs/2", "maxLength": 1}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "required": ["a"], "minProperties": 3}, "minProperties"),
        ({"type": "object", "propertyNames": {"maxLength": 1}, "minProperties": 2}, "minProperties"),
        ({"if": {"type": "string"}, "then": {"maxLength": 1}}, "if"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_by_its_name(schema: Schema, word: str) -> None:
    with pytest.raises(UserError, match=word):
        takes(schema, "")


WORDS = st.sampled_from(["a", "b", "c"])
PLACES = st.sampled_from(["#/$defs/a", "#", "#/nowhere"])
ODD = st.none() | st.booleans() | st.integers() | WORDS | st.lists(WORDS | st.integers(), max_size=2)


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    inner |= ODD
    some, named = st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=2)
    ones = (
        "not",
        "items",
        "propertyNames",
        "additionalProperties",
        "unevaluatedProperties",
        "if",
        "contains",
    )
    types = st.sampled_from(["object", "string", "array", "integer", "null", ["string", "null"], [1], 3])
    keys = {
        **dict.fromkeys(("oneOf", "anyOf", "allOf", "prefixItems"), some),
        **dict.fromkeys(("properties", "$defs", "patternProperties"), named),
        **dict.fromkeys(ones, inner),
        **dict.fromkeys(("enum", "required", "const", "uniqueItems", "maxItems", "exclusiveMinimum"), ODD),
        "$ref": PLACES,
        "type": types,
        "nullable": st.booleans(),
        "discriminator": st.just({"propertyName": "a"}) | ODD,
    }
    return st.fixed_dictionaries({}, optional=keys)


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.just({}), _schemas, max_leaves=6))
def test_whatever_is_no_schema_is_refused(schema: Any) -> None:
    try:
        takes(schema, "")
    except (UserError, AssertionError) as error:
        assert isinstance(error, UserError) or "was not understood" in str(error)
