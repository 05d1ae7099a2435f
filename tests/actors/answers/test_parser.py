"""Answers taken apart: what is a thought, a call, or text; the same however the text was cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.answers.formats import THOUGHT_FORMATS, TOOL_FORMATS, recognised
from actors.answers.parser import AnswerParser
from actors.answers.pieces import CallArguments, CallBegun, CallEnded, Piece, Text, Thought

HERMES, LLAMA, MISTRAL = (TOOL_FORMATS[name] for name in ("hermes", "llama3", "mistral"))
THINK = THOUGHT_FORMATS["think"]
NAMES = ("f", "get_weather")


def merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind together: what does not depend on how the text was cut."""
    out: list[Piece] = []
    for piece in pieces:
        match out[-1:], piece:
            case [Text(a)], Text(b):
                out[-1] = Text(a + b)
            case [Thought(a)], Thought(b):
                out[-1] = Thought(a + b)
            case [CallArguments(i, a)], CallArguments(j, b) if i == j:
                out[-1] = CallArguments(i, a + b)
            case _:
                out.append(piece)
    return out


def apart(name: str, text: str, cuts: tuple[int, ...] = (), *, thinking: bool = False) -> list[Piece]:
    parser = AnswerParser(THINK, TOOL_FORMATS.get(name), NAMES)
    parser.begin(thinking=thinking)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [piece for a, b in itertools.pairwise(edges) for piece in parser.feed(text[a:b])]
    return merged(pieces + parser.flush())


def call(index: int, name: str, arguments: str) -> list[Piece]:
    return [CallBegun(index, name), CallArguments(index, arguments), CallEnded(index)]


WEATHER = '{"city": "Paris \\"}{", "days": [1, {"a": null}]}'
CASES = {
    "text": ("hermes", "Hello, world.\n", [Text("Hello, world.\n")]),
    "a thought": ("", "<think>\nhm. \n</think>\n\nYes.", [Thought("hm."), Text("Yes.")]),
    "an empty thought": ("", "<think>\n\n</think>\n\nYes.", [Text("Yes.")]),
    "an open thought": ("", " <think> so </thin", [Thought("so </thin")]),
    "a tag in text": ("", "No <think>x</think>", [Text("No <think>x</think>")]),
    "nearly a tag": ("", "<thinner", [Text("<thinner")]),
    "one call": (
        "hermes",
        f'<tool_call>\n{{"name": "f", "arguments": {WEATHER}}}\n</tool_call>',
        call(0, "f", WEATHER),
    ),
    "thought, text and two calls": (
        "hermes",
        '<think>a</think>Let me see.\n\n<tool_call>{"arguments": {"x": 1} , "name":"f"}</tool_call>\n'
        '<tool_call>\n{"name": "get_weather"}\n</tool_call>\nDone.',
        [
            Thought("a"),
            Text("Let me see."),
            *call(0, "f", '{"x": 1}'),
            *call(1, "get_weather", "{}"),
            Text("Done."),
        ],
    ),
    "arguments as a string": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
        call(0, "f", '{"x": 1}'),
    ),
    "an empty key": (
        "hermes",
        '<tool_call>{"": 1, "name": "f", "arguments": {"": 2}}</tool_call>',
        call(0, "f", '{"": 2}'),
    ),
    "no JSON": ("hermes", "<tool_call>\nhello</tool_call>", [Text("<tool_call>\nhello</tool_call>")]),
    "no name": (
        "hermes",
        '<tool_call>{"nom": "f"} </tool_call>',
        [Text('<tool_call>{"nom": "f"} </tool_call>')],
    ),
    "cut off before its arguments": (
        "hermes",
        '<tool_call>{"name": "f", ',
        [Text('<tool_call>{"name": "f", ')],
    ),
    "cut off in its arguments": (
        "hermes",
        'So: <tool_call>{"name": "f", "arguments": {"x": ',
        [Text("So:"), *call(0, "f", '{"x": ')],
    ),
    "llama": ("llama3", f'{{"name": "f", "parameters": {WEATHER}}}', call(0, "f", WEATHER)),
    "llama, twice, behind the tag": (
        "llama3",
        '<|python_tag|>{"type": "function", "name": "f", "parameters": {}}; '
        '{"name": "f", "parameters": {"x": 2}}',
        [*call(0, "f", "{}"), *call(1, "f", '{"x": 2}')],
    ),
    "llama, a JSON answer": (
        "llama3",
        '{"name": "Ada", "parameters": {}}',
        [Text('{"name": "Ada", "parameters": {}}')],
    ),
    "llama, text": ("llama3", "Hi {you}", [Text("Hi {you}")]),
    "mistral, a list": (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {}}]',
        [*call(0, "f", '{"x": 1}'), *call(1, "f", "{}")],
    ),
    "mistral, by name": (
        "mistral",
        'Well [TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]get_weather[CALL_ID]abc123def[ARGS]{}',
        [Text("Well"), *call(0, "f", '{"x": 1}'), *call(1, "get_weather", "{}")],
    ),
    "mistral, a name alone": ("mistral", "[TOOL_CALLS]f", [Text("[TOOL_CALLS]f")]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_answer_means(case: str) -> None:
    name, text, expected = CASES[case]
    assert apart(name, text) == expected
    assert apart(name, text, tuple(range(len(text)))) == expected, "character by character"


def test_a_prompt_that_ends_in_a_thought() -> None:
    assert apart("", "\nhm</think>Yes", thinking=True) == [Thought("hm"), Text("Yes")]
    assert apart("", "hm ", thinking=True) == [Thought("hm")]


FRAGMENTS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>",
    '{"name": "f", "arguments": {"x": [1, "}"]}}', '{"name": "f", ', '"parameters": {}', "{", "}", "[", "]",
    '"', "\\", ",", ":", ";", " ", "\n", "f", "text", "<", "é",
]  # fmt: skip


@given(
    st.sampled_from(["", "hermes", "llama3", "mistral"]),
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.lists(st.integers(0, 500), max_size=20).map(tuple),
    st.booleans(),
)
@example("hermes", 'a <tool_call>{"name": "f", "arguments": {}}</tool_call', (5, 9, 30), False)
def test_any_cut_of_the_text_gives_the_same(
    name: str, text: str, cuts: tuple[int, ...], thinking: bool
) -> None:
    whole = apart(name, text, thinking=thinking)
    assert apart(name, text, cuts, thinking=thinking) == whole
    assert apart(name, text, tuple(range(len(text))), thinking=thinking) == whole
    begun = [piece.number for piece in whole if isinstance(piece, CallBegun)]
    ended = [piece.number for piece in whole if isinstance(piece, CallEnded)]
    assert begun == ended == list(range(len(begun))), "every call begins once and ends once, in order"


@given(
    st.sampled_from(["hermes", "mistral", "llama3"]),
    st.lists(
        st.dictionaries(
            st.text(max_size=5), st.integers() | st.text(max_size=8) | st.lists(st.none()), max_size=3
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.integers(0, 500), max_size=9).map(tuple),
)
def test_calls_come_back_as_they_were_written(
    name: str, arguments: list[dict[str, object]], cuts: tuple[int, ...]
) -> None:
    key = "parameters" if name == "llama3" else "arguments"
    calls = [json.dumps({"name": "f", key: each}) for each in arguments]
    text = {
        "hermes": "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in calls),
        "mistral": f"[TOOL_CALLS][{', '.join(calls)}]",
        "llama3": "; ".join(calls),
    }[name]
    found = apart(name, text, cuts)
    read = [json.loads(piece.text) for piece in found if isinstance(piece, CallArguments)]
    assert read == arguments
    assert not [piece for piece in found if isinstance(piece, Text)]


def test_templates_give_their_formats_away() -> None:
    assert recognised(["... <tool_call> ... </think>"]) == ("hermes", "think")
    assert recognised(["{{ '[TOOL_CALLS]' }}"]) == ("mistral", "none")
    assert recognised(["<|python_tag|>"]) == ("llama3", "none")
    assert recognised([]) == ("none", "none")
