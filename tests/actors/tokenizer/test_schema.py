"""Schemas as grammars in which everything ends: they take what programs write, where it fits the schema."""

from __future__ import annotations

import decimal
import functools
import json
import math
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from actors.tokenizer import ranges
from actors.tokenizer.grammar import GrammarMaker
from actors.tokenizer.schema import NAME, bounded
from actors.tokenizer.schema_keys import NotUnderstood
from protocols.errors import UserError
from protocols.grammar import Rules, Shape, Syntax
from tests.actors.tokenizer.test_grammar import _codec, _maker
from tools.conformance.schemas import schema_of

Schema = dict[str, Any]


@functools.lru_cache(300)
def _matcher(source: str) -> LLMatcher:
    maker: GrammarMaker = _maker()
    grammar = maker(Rules(Shape(Syntax.JSON, source, "p")))
    assert "json_schema" not in grammar, "the schema was not understood"
    return LLMatcher(maker.guidance.vocabulary, grammar, log_level=0)


def takes(schema: Schema | bool, text: str) -> bool:
    """Whether a text is a whole answer."""
    matcher = _matcher(json.dumps(schema))
    assert matcher.reset()
    ids = _codec().encode(text, add_special=False).tolist()
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=NAME // 12)
VALUES = st.recursive(
    st.none() | st.booleans() | DOUBLES | st.integers(-(2**127), 2**128) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.sampled_from([None, 2]))
def test_any_json_that_an_encoder_writes_is_taken(value: Any, indent: int | None) -> None:
    assert takes(True, json.dumps(value, ensure_ascii=False, indent=indent))


@settings(max_examples=200, deadline=None)
@given(DOUBLES)
def test_every_double_is_taken(value: float) -> None:
    for text in (json.dumps(value), f"{value:.17g}", f"{value:.16e}"):
        assert takes({"type": "number"}, text), text


LIMITS = st.decimals(-3000, 3000, places=3) | st.integers(-3000, 3000).map(decimal.Decimal)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"]), unique=True),
    st.lists(LIMITS, min_size=4, max_size=4),
    st.lists(LIMITS, min_size=6, max_size=6),
    st.sampled_from(["integer", "number"]),
)
def test_limits_of_numbers(
    keys: list[str], limits: list[decimal.Decimal], values: list[decimal.Decimal], type_: str
) -> None:
    schema: Schema = {"type": type_, **{key: float(end) for key, end in zip(keys, limits, strict=False)}}
    try:
        bounded(schema)
    except NotUnderstood:
        return
    judge = jsonschema.Draft202012Validator(schema)
    step = decimal.Decimal("0.001")
    ends = [end + by for end in limits for by in (-step, 0 * step, step)]
    if not any(map(judge.is_valid, map(float, ends + values))):
        return
    for value in values + ends:
        text = format(value.normalize(), "f")
        if value and (type_ == "number" or value == int(value)):
            assert takes(schema, text) == judge.is_valid(json.loads(text)), (schema, text)


@pytest.mark.parametrize(
    ("schema", "endless"),
    [
        ({"type": "number"}, "0.3" + "3" * 100),
        ({"type": "number"}, "1" * 100),
        ({"type": "number"}, "1e" + "1" * 100),
        ({"type": "number", "minimum": 0}, "0.0" + "0" * 100),
        ({"type": "integer"}, "7" * 100),
        ({"type": "integer", "multipleOf": 5}, "5" * 100),
        ({"type": "string", "format": "email"}, '"' + "a" * 100),
        ({"type": "string", "format": "email"}, '"a@b' + ".b" * 300),
        ({"type": "string", "format": "date-time"}, '"2026-01-01T00:00:00.' + "1" * 100),
        ({"type": "object"}, '{"' + "a" * 200),
        (True, "[{}, 1." + "5" * 100),
        ({"type": "array", "items": {"$ref": "#"}, "maxItems": 2}, "[" + "\n" * 100),
    ],
)
def test_what_a_schema_leaves_open_ends(schema: Schema | bool, endless: str) -> None:
    """Token by token there comes a place where the endless thing is not allowed any more."""
    takes(schema, "")
    matcher = _matcher(json.dumps(schema))
    matcher.reset()
    ids = _codec().encode(endless, add_special=False).tolist()
    assert 0 < matcher.try_consume_tokens(ids) < len(ids)


NESTED: Schema = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": []}},
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "a/b": {"enum": ["x", 'q"', "é", 3, {"k": [1, "b"]}]},
        "list": {"type": "array", "prefixItems": [{"const": 1}], "items": {"type": "string"}, "minItems": 2},
        "node": {"$ref": "#/$defs/node"},
        "either": {"anyOf": [{"type": "null"}, {"type": "string", "format": "email", "maxLength": 9}]},
    },
    "required": ["id", "more"],
    "additionalProperties": {"type": "boolean"},
}


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ({"id": 1, "more": True}, True),
        ({"id": 1}, False),
        ({"id": 0, "more": True}, False),
        ({"id": 1, "a/b": 'q"', "more": False, "other": True}, True),
        ({"id": 1, "a/b": {"k": [1, "b"]}, "list": [1, "x", "y"], "more": False}, True),
        ({"id": 1, "list": [1], "more": False}, False),
        ({"id": 1, "list": [2, "x"], "more": False}, False),
        ({"id": 1, "node": {"next": {"next": {"other": 1}}}, "more": True}, True),
        ({"id": 1, "node": {"next": 1}, "more": True}, False),
        ({"id": 1, "either": None, "more": True}, True),
        ({"id": 1, "either": "a@b.de", "more": True}, True),
        ({"id": 1, "either": "abcdef@b.de", "more": True}, False),
        ({"id": 1, "more": True, "other": 1}, False),
        ({"id": 1, "more": True, "\x07é😀": False}, True),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_objects(value: Any, good: bool, indent: int | None) -> None:
    assert takes(NESTED, json.dumps(value, ensure_ascii=False, indent=indent)) == good
    assert jsonschema.Draft202012Validator(NESTED, format_checker=None).is_valid(value) or not good


def test_a_known_name_is_spelled_in_one_way() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}}
    assert takes(schema, '{"b": 1}') and takes(schema, '{"\\u0007": 1}')
    for name in ("a", "\\u0061"):
        assert not takes(schema, f'{{"{name}": 1}}')


FIELD_OR_ANY: Schema = {
    "anyOf": [
        {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False},
        {"type": "object"},
    ]
}


@pytest.mark.parametrize("value", [{"a": 1}, {"a": 2}, {"a": {"a": []}, "b": 1}])
def test_a_name_that_one_option_knows_is_free_in_the_other(value: Any) -> None:
    assert takes(FIELD_OR_ANY, json.dumps(value))


def test_parts_that_are_true_say_nothing() -> None:
    assert takes({"allOf": [True, {"type": "integer"}]}, "1")
    assert not takes({"allOf": [True, {"type": "integer"}]}, "1.5")


def test_formats_that_the_standard_does_not_know_and_names_that_are_texts_are_remarks() -> None:
    schema: Schema = {
        "$defs": {"where": {"type": "string", "format": "path"}},
        "type": "object",
        "properties": {
            "format": {"$ref": "#/$defs/where"},
            "secrets": {"type": "array", "items": {"type": "string", "format": "password"}},
            "by_name": {
                "type": "object",
                "propertyNames": {"type": "string"},
                "additionalProperties": {"type": "integer"},
            },
            "kept": {"const": {"format": "path"}},
            "either": {"anyOf": [{"type": "null"}, {"type": "string", "format": "binary"}]},
        },
        "additionalProperties": False,
    }
    value = {"format": "/", "secrets": ["x"], "by_name": {"a": 1}, "kept": {"format": "path"}, "either": "b"}
    assert takes(schema, json.dumps(value))
    assert not takes(schema, '{"kept": {}}')
    assert not takes(schema, '{"by_name": {"a": "1"}}')
    with pytest.raises(UserError, match="idn-email"):
        takes({"type": "string", "format": "idn-email"}, "")


def test_whole_values_of_an_integer_are_written_without_a_point() -> None:
    assert takes({"type": "integer", "enum": [1, 2.0]}, "2")


@pytest.mark.parametrize("number", range(0, 400, 13))
def test_every_kind_of_schema_is_understood(number: int) -> None:
    bounded(schema_of(number))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "patternProperties": {"^a": {"type": "number"}}},
        {"allOf": [{"type": "object", "properties": {"a": {}}}, {"properties": {"a": {"type": "null"}}}]},
        {"type": "number", "minimum": 10**60},
        {"type": "object", "additionalProperties": False, "minProperties": 1},
        {"type": "object", "minProperties": 2, "maxProperties": 1},
        {"type": "number", "minimum": 10, "maximum": 1},
        {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
        {"type": "integer", "minimum": 0.2, "maximum": 0.8},
        {"$ref": "#/$defs/a", "type": "string", "$defs": {"a": {"minLength": 2}}},
    ],
)
def test_what_is_not_understood_is_left_as_it_is(schema: Schema) -> None:
    with pytest.raises(NotUnderstood):
        bounded(schema)


def test_the_digits_are_those_of_doubles() -> None:
    longest = max(
        len(json.dumps(-math.pi * 10.0**-power).partition("e")[0].partition(".")[2]) for power in range(9)
    )
    assert longest <= ranges.FRACTION_DIGITS
