"""The chunk stream: order, merging, usage, logprobs, errors; every line is one JSON document."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.frontend.answer_format import AnswerFormat
from actors.frontend.chat import ChatDialect
from actors.frontend.chunks import ChunkStream
from actors.frontend.completions import TextDialect
from protocols.errors import ErrorBody
from protocols.messages import TextLogprob, TextRow
from protocols.request import Finish, Usage


def chat(choices: int = 1, **options: Any) -> ChunkStream:
    return ChunkStream(
        ChatDialect(AnswerFormat()), id="c1", created=5, model="m", choices=choices, n=choices, **options
    )


def row(text: str, finish: Finish = Finish.NONE, tokens: int = 1, **fields: Any) -> TextRow:
    return TextRow(1, 0, text, tokens, finish, usage=Usage(5, tokens, 2), **fields)


def lines(data: bytes) -> list[Any]:
    assert data == b"" or data.endswith(b"\n\n")
    parts = data.decode().split("\n\n")[:-1]
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [None if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]


def choice(index: int, delta: dict[str, str], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **more}


def test_the_order_of_a_chat_stream() -> None:
    s = chat(include_usage=True)
    opening = lines(s.take())
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m", "usage": None}
    assert opening == [{**head, "choices": [choice(0, {"role": "assistant", "content": ""})]}]
    assert s.take() == b""
    s.feed(0, row('Hi "you"\n'))
    assert lines(s.take()) == [{**head, "choices": [choice(0, {"content": 'Hi "you"\n'})]}]
    s.feed(0, row("a"))
    s.feed(0, row("b", Finish.STOP, tokens=3, stop="END"))
    assert lines(s.take()) == [
        {**head, "choices": [choice(0, {"content": "ab"})]},
        {**head, "choices": [choice(0, {}, "stop", stop_reason="END")]},
        {
            **head,
            "choices": [],
            "usage": {
                "prompt_tokens": 5,
                "completion_tokens": 3,
                "total_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 2},
            },
        },
        None,
    ]
    assert s.ended and s.take() == b""


def test_choices_end_one_by_one() -> None:
    s = chat(2)
    assert len(lines(s.take())) == 2
    s.feed(1, row("b", Finish.LENGTH))
    assert [c["choices"][0]["index"] for c in lines(s.take())] == [1, 1]
    assert not s.ended
    s.feed(0, row("", Finish.STOP, stop=7))
    last, done = lines(s.take())
    assert last["choices"][0] == choice(0, {}, "stop", stop_reason=7)
    assert done is None and s.ended


def test_an_error_ends_the_stream() -> None:
    s = chat()
    s.take()
    s.feed(0, row("some"))
    s.fail(ErrorBody(500, "Broken.", "server_error", "internal_error"))
    text, error, done = lines(s.take())
    assert text["choices"][0]["delta"] == {"content": "some"}
    assert error["error"]["message"] == "Broken." and done is None and s.ended


def test_continuous_usage_logprobs_and_ids() -> None:
    s = chat(include_usage=True, continuous_usage=True)
    assert lines(s.take())[0]["usage"]["total_tokens"] == 0
    entry = TextLogprob(("a", b"a", -0.25), (("a", b"a", -0.25), ("b", b"b", -2.0)))
    s.feed(0, row("a", logprobs=(entry,), token_ids=(17,)))
    (chunk,) = lines(s.take())
    assert chunk["usage"]["completion_tokens"] == 1
    shown = chunk["choices"][0]
    assert shown["token_ids"] == [17]
    assert shown["logprobs"]["content"][0]["top_logprobs"][1] == {
        "token": "b",
        "logprob": -2.0,
        "bytes": [98],
    }


def test_completions_count_characters_for_their_offsets() -> None:
    s = ChunkStream(TextDialect(), id="c", created=5, model="m", choices=2, n=1)
    assert s.take() == b""
    s.feed(1, row("éa", logprobs=(TextLogprob(("é", "é".encode(), -1.0)), TextLogprob(("a", b"a", -2.0)))))
    assert lines(s.take())[0]["choices"][0]["logprobs"]["text_offset"] == [0, 1]
    s.feed(1, row("b", logprobs=(TextLogprob(("b", b"b", -1.0), (("b", b"b", -1.0),)),)))
    (chunk,) = lines(s.take())
    assert chunk["object"] == "text_completion"
    assert chunk["choices"] == [
        {
            "index": 1,
            "text": "b",
            "logprobs": {
                "tokens": ["b"],
                "token_logprobs": [-1.0],
                "top_logprobs": [{"b": -1.0}],
                "text_offset": [2],
            },
            "finish_reason": None,
        }
    ]


@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=4), st.booleans()), max_size=40))
def test_no_text_is_lost_or_moved(rows: list[tuple[int, str, bool]]) -> None:
    s = chat(3)
    out = s.take()
    expected = ["", "", ""]
    for index, text, take in rows:
        s.feed(index, row(text))
        expected[index] += text
        out += s.take() if take else b""
    for index in range(3):
        s.feed(index, row("", Finish.STOP))
    out += s.take()
    said = ["", "", ""]
    for chunk in lines(out)[:-1]:
        (shown,) = chunk["choices"]
        said[shown["index"]] += shown["delta"].get("content", "")
    assert said == expected and s.ended
