"""Structural tags: which texts each form of them takes."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import pytest
from llguidance import LLMatcher

from actors.tokenizer.codec import Codec, load_codec
from actors.tokenizer.grammar import GrammarMaker
from protocols import structural_tags
from protocols.config import Config, read_model_card
from protocols.errors import UserError
from protocols.grammar import Rules, Shape, Syntax
from tools.actorctl.serve import DEMO_MODEL

NUMBER: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {"type": "json_schema", "json_schema": NUMBER}
LEGACY: dict[str, Any] = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<function=f>", "schema": NUMBER, "end": "</function>"},
        {"begin": "<function=other>", "schema": {"type": "boolean"}, "end": "</function>"},
    ],
    "triggers": ["<function="],
}


@functools.cache
def _codec() -> Codec:
    return load_codec(DEMO_MODEL)


@functools.cache
def _maker() -> GrammarMaker:
    return GrammarMaker(Config(read_model_card(DEMO_MODEL)), _codec())


def takes(tag: dict[str, Any], text: str) -> bool:
    """Whether a text is a whole answer."""
    source = msgspec.json.encode(structural_tags.read(tag, "p")).decode()
    made = _maker()(Rules(Shape(Syntax.TAGS, source, "p")))
    matcher = LLMatcher(_maker().guidance.vocabulary, made, log_level=0)
    ids = _codec().encode(text, add_special=False).tolist()
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


def _tag(begin: str, content: Any, end: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def _triggered(**fields: Any) -> dict[str, Any]:
    tags = [_tag("<a>", SCHEMA, "</a>"), _tag("<b>", {"type": "regex", "pattern": "[0-9]+"}, ["</b>", "!"])]
    return {"format": {"type": "triggered_tags", "triggers": ["<a", "<b>"], "tags": tags, **fields}}


STRANGE = ("//", "\n\n", "\r\n", ']"\\/', "(?s:")
ONE = '<a>{"x": 1}</a>'
CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "the older form": (
        LEGACY,
        [
            "",
            "just <text>",
            'so: <function=f>{"x": 1}</function> and <function=other>true</function>\n',
            "<function=other>false</function><function=other>true</function>",
        ],
        ["<function=", "<function=g>", '<function=f>{"y": 1}</function>', "<function=other>1</function>"],
    ),
    "triggers": (
        _triggered(),
        ["", "hi", f"hi {ONE} there {ONE}", f"<b>12!{ONE}<b>3</b> x"],
        ["<a", "<a>{}</a>", "<b>x</b>", "<b>1"],
    ),
    "at least one": (_triggered(at_least_one=True), [ONE, f"{ONE} x {ONE}"], ["", "hi"]),
    "the first only": (
        _triggered(stop_after_first=True),
        ["", "hi", ONE, f"hi {ONE}"],
        [ONE + ONE, ONE + "x"],
    ),
    "just one": (
        _triggered(at_least_one=True, stop_after_first=True),
        [ONE, "<b>1!"],
        ["", f"x{ONE}", ONE + ONE],
    ),
    "a sequence": (
        {
            "format": {
                "type": "sequence",
                "elements": [
                    _tag("<think>", {"type": "any_text"}, "</think>"),
                    {"type": "const_string", "value": "\n"},
                    {"type": "or", "elements": [SCHEMA, {"type": "grammar", "grammar": 'root ::= "y" "z"*'}]},
                ],
            }
        },
        ['<think>a <b> "c"</think>\n{"x": 1}', "<think></think>\nyzz"],
        ['{"x": 1}', "<think>a</think>yz", "<think>a</think>\nz", "<think>a\nyz"],
    ),
    "tags and what is between them": (
        {
            "format": {
                "type": "tags_with_separator",
                "separator": ", ",
                "tags": [{"begin": "[", "content": {"type": "regex", "pattern": "[a-z]"}, "end": "]"}],
            }
        },
        ["", "[a]", "[a], [b]"],
        ["[a] [b]", "[a],", "x"],
    ),
    "triggers within a tag": (
        {"format": _tag("<all>", _triggered()["format"], "</all>")},
        ["<all></all>", f"<all>x {ONE} y</all>"],
        ["<all>", "<all><a></all>", f"<all>{ONE}</all>."],
    ),
    "triggers that mean something in a grammar": (
        {
            "format": {
                "type": "triggered_tags",
                "triggers": ["/", "\n", "\r", ']"\\', "(?"],
                "tags": [_tag(begin, {"type": "regex", "pattern": "/"}, "\n") for begin in STRANGE],
            }
        },
        ["", "a [b", *(f"x{begin}/\ny" for begin in STRANGE)],
        [*(f"x{begin}" for begin in STRANGE), "a/b", "a\nb"],
    ),
    "text that is forced and never ends": (
        {"format": {"type": "sequence", "elements": [{"type": "regex", "pattern": "a+"}] * 2}},
        [],
        ["", "b"],
    ),
    "only text": ({"format": {"type": "any_text"}}, ["", "a <tag> {"], []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_tag_takes(case: str) -> None:
    tag, good, bad = CASES[case]
    assert [text for text in good if not takes(tag, text)] == []
    assert [text for text in bad if takes(tag, text)] == []


@pytest.mark.parametrize(
    ("tag", "sentence"),
    [
        ({}, "missing required field `format`"),
        ({"structures": []}, "missing required field `triggers`"),
        ({"structures": [], "triggers": ["a"]}, "tags must not be empty"),
        (_triggered(triggers=[]), "none of them empty"),
        (_triggered(triggers=["<", "<b"]), "another trigger begins with '<'"),
        (_triggered(excludes=["x"]), "unknown field `excludes`"),
        ({"format": {"type": "or", "elements": []}}, "elements must not be empty"),
        ({"format": _tag("a", {"type": "any_text"}, [])}, "a list of ends"),
        (_triggered(tags=[_tag("<a>", {"type": "any_text"}, "")]), "needs an end"),
    ],
)
def test_what_makes_no_sense_is_refused(tag: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        structural_tags.read(tag, "p")
    assert caught.value.body.status == 400 and caught.value.body.param == "p"
    assert sentence in caught.value.body.message


@pytest.mark.parametrize(
    ("tag", "sentence"),
    [
        ({"format": {"type": "regex", "pattern": "a("}}, "unclosed group"),
        ({"format": {"type": "json_schema", "json_schema": {"not": {}}}}, "Unimplemented keys"),
        ({"format": _tag("a", {"type": "any_text"}, "b<|endoftext|>")}, "a special token comes behind text"),
    ],
)
def test_parts_that_are_broken_are_refused(tag: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        takes(tag, "")
    assert sentence in caught.value.body.message
