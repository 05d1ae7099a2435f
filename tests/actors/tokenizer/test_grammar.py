"""The one grammar that a request's rules mean: what it takes, what it refuses, and why there is none."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer

from actors.tokenizer import guidance, shapes
from actors.tokenizer.codec import Codec, load_codec
from actors.tokenizer.grammar import GrammarMaker
from protocols.config import Config, read_model_card
from protocols.errors import UserError
from protocols.grammar import Rules, Shape, Syntax, ToolRule
from tools.actorctl.serve import DEMO_MODEL

THOUGHTS = ("<think>", "</think>")
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    }
)
TOOLS = (ToolRule("f", SCHEMA), ToolRule("g"))
JSON = Shape(Syntax.JSON, SCHEMA, "response_format")


@functools.cache
def _codec() -> Codec:
    return load_codec(DEMO_MODEL)


@functools.cache
def _maker(parser: str = "none") -> GrammarMaker:
    return GrammarMaker(Config(read_model_card(DEMO_MODEL), tool_parser=parser), _codec())


def takes(maker: GrammarMaker, rules: Rules, text: str, thoughts: tuple[str, ...] = (), **how: Any) -> bool:
    """Whether a text is a whole answer."""
    matcher = LLMatcher(maker.guidance.vocabulary, maker(rules, thoughts, **how), log_level=0)
    ids = _codec().encode(text, add_special=False).tolist()
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


CIRCLE = json.dumps(
    {
        "$defs": {
            "a": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]},
            "b": {"oneOf": [{"type": "integer"}, {"allOf": [{"$ref": "#/$defs/a"}]}]},
        },
        "type": "array",
        "items": {"$ref": "#/$defs/a"},
    }
)


def _hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def _llama(name: str, arguments: str) -> str:
    return f'{{"name": "{name}", "parameters": {arguments}}}'


def _mistral(*calls: tuple[str, str]) -> str:
    listed = ", ".join(f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in calls)
    return f"[TOOL_CALLS][{listed}]"


ONE = {
    "hermes": _hermes("f", '{"x": 1}'),
    "llama3": _llama("f", '{"x": 1}'),
    "mistral": _mistral(("f", '{"x": 1}')),
}
TWO = {
    "hermes": _hermes("f", '{"x": 1}') + "\n" + _hermes("g", '{"any": [null]}'),
    "llama3": _llama("f", '{"x": 1}') + "; " + _llama("g", "{}"),
    "mistral": _mistral(("f", '{"x": 1}'), ("g", "{}")),
}
WRONG = {
    "hermes": _hermes("f", '{"y": 1}'),
    "llama3": _llama("f", '{"y": 1}'),
    "mistral": _mistral(("f", '{"y": 1}')),
}


@pytest.mark.parametrize("parser", ["hermes", "llama3", "mistral"])
def test_calls(parser: str) -> None:
    maker = _maker(parser)
    free, forced = Rules(tools=TOOLS), Rules(tools=TOOLS, forced=True)
    single, either = Rules(tools=TOOLS, parallel=False), Rules(JSON, TOOLS)
    for rules, text, called, twice, shaped in (
        (free, True, True, True, parser != "llama3"),
        (forced, False, True, True, False),
        (single, True, True, False, parser != "llama3"),
        (either, False, True, True, True),
    ):
        found = [takes(maker, rules, each) for each in ("hi there", ONE[parser], TWO[parser], '{"x": 1}')]
        assert found == [text, called, twice, shaped], rules
        assert not takes(maker, rules, WRONG[parser])


def test_thoughts_come_first_and_are_free() -> None:
    maker = _maker("hermes")
    for text in ("<think>{}</think>\n\n", "<think></think>", ""):
        assert takes(maker, Rules(JSON), text + '{"x": 1}', THOUGHTS)
    assert takes(maker, Rules(JSON), 'hm</think>{"x": 1}', THOUGHTS, thinking=True)
    assert not takes(maker, Rules(JSON), '{"x": 1}', THOUGHTS, thinking=True)
    assert not takes(maker, Rules(JSON), '<think>a</think>{"x": 1}'), "where nobody looks for thoughts"
    assert takes(maker, Rules(tools=TOOLS, forced=True), "<think>a</think>\n" + ONE["hermes"], THOUGHTS)


@pytest.mark.parametrize(
    ("syntax", "source", "good", "bad"),
    [
        (Syntax.REGEX, r"a/b\/c\\/[^\"]+", "a/b/c\\/zz", "a"),
        (Syntax.REGEX, "^ab$", "ab", "^ab$"),
        (Syntax.REGEX, "(a+)+b", "a" * 40 + "b", "a" * 40),
        (Syntax.REGEX, "((x+x+)+y){1,9}", "xxxy" * 9, "xxxy" * 9 + "x"),
        (Syntax.CHOICE, '["a b", "é\\n", "x/\\"y"]', 'x/"y', "a"),
        (Syntax.GRAMMAR, 'root ::= "a" [0-9]+', "a12", "a"),
        (Syntax.GRAMMAR, 'start: "a" B\nB: /[0-9]+/', "a12", "a"),
        (Syntax.GRAMMAR, '?start: "a" b\n!b: /[0-9]+/', "a12", "a"),
        (Syntax.JSON, "true", "[1, {}]", "x"),
        (Syntax.JSON, SCHEMA, '{\n  "x": 1\n}', '{"x":    1}'),
    ],
)
def test_shapes(syntax: Syntax, source: str, good: str, bad: str) -> None:
    rules = Rules(Shape(syntax, source, "p"))
    assert takes(_maker(), rules, good) and not takes(_maker(), rules, bad)


@pytest.mark.parametrize(
    ("syntax", "source", "sentence"),
    [
        (Syntax.REGEX, "a(b", "unclosed group"),
        (Syntax.REGEX, "(?=a)", "look-around"),
        (Syntax.REGEX, "(" * 5000 + ")" * 5000, "nested more than 100"),
        (Syntax.GRAMMAR, "start: foo", 'unknown name: "foo"'),
        (Syntax.GRAMMAR, "start: @top", "allows no text"),
        (Syntax.GRAMMAR, "nonsense", "Expected ::="),
        (Syntax.GRAMMAR, 'start: a\na: a "x"', "it allows no text"),
        (Syntax.GRAMMAR, "\n".join(f"r{i} ::= r{i + 1}" for i in range(300)), "more than 200 rules"),
        (Syntax.GRAMMAR, "start: " + '"a"? ' * 3000, "more than 800 symbols"),
        (Syntax.JSON, '{"type": "objekt"}', "Invalid type"),
        (Syntax.JSON, '{"not": {}}', "Unimplemented keys"),
        (Syntax.JSON, '{"$ref": "http://a/b"}', "not present in a registry"),
        (Syntax.JSON, '{"$ref": "#"}', "# refers to itself"),
        (Syntax.JSON, CIRCLE, "#/$defs/b refers to itself, with nothing in between"),
        (Syntax.JSON, "false", "Unsatisfiable"),
        (Syntax.JSON, "[]", "must be an object or boolean"),
    ],
)
def test_refusals(syntax: Syntax, source: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        _maker()(Rules(Shape(syntax, source, "p")))
    assert caught.value.body.status == 400 and caught.value.body.param == "p"
    assert sentence in caught.value.body.message and "\n" not in caught.value.body.message


class PanicException(BaseException):
    """As the library's panics come out of pyo3: the name is all that tells them."""


@pytest.mark.parametrize("raised", [ValueError("no"), PanicException("unwrap on a None value")])
def test_what_the_library_raises_is_a_refusal(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    def fails(*args: object, **options: object) -> None:
        raise raised

    maker = GrammarMaker(Config(read_model_card(DEMO_MODEL)), _codec())
    monkeypatch.setattr(guidance, "LLTokenizer", fails)
    with pytest.raises(UserError, match="with the tokenizer of this model") as caught:
        maker(Rules(JSON))
    assert caught.value.body.code == "unsupported"
    monkeypatch.setattr(shapes, "any_to_lark", fails)
    with pytest.raises(UserError, match="p cannot be used"):
        maker(Rules(Shape(Syntax.GRAMMAR, "start: A", "p")))


def test_a_regular_expression_that_is_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="p cannot be used") as caught:
        _maker()(Rules(Shape(Syntax.REGEX, "\ud800", "p")))
    assert caught.value.body.param == "p"


def test_a_cancellation_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "any_to_lark", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _maker()(Rules(Shape(Syntax.GRAMMAR, "start: B", "p")))


def test_tools_need_a_format_and_good_schemas() -> None:
    with pytest.raises(UserError, match="--tool-parser"):
        _maker()(Rules(tools=TOOLS, forced=True))
    with pytest.raises(UserError) as caught:
        _maker("hermes")(Rules(tools=(TOOLS[0], ToolRule("h", '{"not": {}}')), forced=True))
    assert caught.value.body.param == "tools[1].parameters"


@pytest.mark.parametrize("special", [False, True])
def test_a_tag_that_is_one_token_is_that_token(special: bool) -> None:
    """Whether or not the tokenizer calls it special, as Qwen's does not."""
    text = json.loads((DEMO_MODEL / "tokenizer.json").read_text().replace("<|pad|>", "</think>"))
    text["added_tokens"][1]["special"] = special
    codec = Codec(Tokenizer.from_str(json.dumps(text)), {})
    maker = GrammarMaker(Config(read_model_card(DEMO_MODEL)), codec)
    matcher = LLMatcher(maker.guidance.vocabulary, maker(Rules(JSON), THOUGHTS, thinking=True), log_level=0)
    ids = codec.encode('hm</think>\n{"x": 1}', add_special=False).tolist()
    assert 1 in ids and matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
