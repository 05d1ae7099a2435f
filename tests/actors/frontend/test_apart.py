"""Answers with thoughts and calls on their way to the client: chunks of a chat, items of a response."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.answers.formats import THOUGHT_FORMATS, TOOL_FORMATS
from actors.frontend.answer_format import AnswerFormat
from actors.frontend.chat import ChatDialect
from actors.frontend.chunks import ChunkStream
from actors.frontend.response_stream import ResponseStream
from protocols.errors import ErrorBody
from protocols.messages import TextLogprob, TextRow
from protocols.openai.responses import Response
from protocols.request import Finish, Usage

FORMAT = AnswerFormat(THOUGHT_FORMATS["think"], TOOL_FORMATS["hermes"], ("f",))
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
ANSWER = f"<think>\nhm </think>\n\nLook: {CALL}\n{CALL}"


def rows(
    text: str, cuts: list[int], *, thinking: bool = False, finish: Finish = Finish.STOP
) -> list[TextRow]:
    """`text` in rows of one token each; usage on the first and the last, as the tokenizer tells it."""
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts} - {0, len(text)}), len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(edges)]
    usage = Usage(5, len(parts), 0, 2, thinking)
    return [
        TextRow(
            1,
            start,
            part,
            number,
            finish if number == len(parts) else Finish.NONE,
            usage=usage if number in (1, len(parts)) else None,
        )
        for start, number, part in zip(edges, itertools.count(1), parts, strict=False)
    ]


def streamed(given: list[TextRow]) -> list[dict[str, Any]]:
    s = ChunkStream(ChatDialect(FORMAT), id="c", created=1, model="m", choices=1, n=1, include_usage=True)
    data = b""
    for row in given:
        s.feed(0, row)
        data += s.take()
    assert s.ended
    lines = data.decode().split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line and not line.endswith("[DONE]")]


def joined(chunks: list[dict[str, Any]]) -> tuple[str, str, list[tuple[str, str]], str]:
    thought = text = finish = ""
    calls: list[tuple[str, str]] = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            assert delta.get("reasoning") == delta.get("reasoning_content")
            thought += delta.get("reasoning") or ""
            text += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(calls) and call["type"] == "function"
                    calls.append((call["function"]["name"], ""))
                else:
                    calls[-1] = (calls[-1][0], calls[-1][1] + call["function"]["arguments"])
            finish = choice["finish_reason"] or finish
    return thought, text, calls, finish


@given(st.lists(st.integers(0, 500), max_size=30))
def test_a_chat_says_the_same_however_it_came(cuts: list[int]) -> None:
    chunks = streamed(rows(ANSWER, cuts))
    assert joined(chunks) == ("hm", "Look:", [("f", '{"x": 1}'), ("f", '{"x": 1}')], "tool_calls")
    assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_a_chat_that_the_prompt_made_think() -> None:
    assert joined(streamed(rows("so</think>Yes", [1, 5], thinking=True))) == ("so", "Yes", [], "stop")
    assert joined(streamed(rows("so", [], thinking=True, finish=Finish.LENGTH))) == ("so", "", [], "length")


def test_details_come_with_the_first_delta() -> None:
    entry = TextLogprob(("a", b"a", -0.5))
    first = TextRow(1, 0, "<thi", 1, usage=Usage(5, 1, 0), logprobs=(entry,), token_ids=(9,))
    last = TextRow(1, 4, "ng", 2, Finish.STOP, logprobs=(entry,), token_ids=(8,), usage=Usage(5, 2, 0))
    found = [choice for chunk in streamed([first, last]) for choice in chunk["choices"]]
    assert [choice.get("token_ids") for choice in found] == [None, [9], [8], None]
    assert [bool(choice["logprobs"]) for choice in found] == [False, True, True, False]


def events(given: list[TextRow], error: ErrorBody | None = None) -> list[dict[str, Any]]:
    document = Response(id="resp_1", created_at=1, status="queued", model="m", output=[])
    stream = ResponseStream(document, "msg_" + "ab" * 16, answer_format=FORMAT)
    stream.start()
    for row in given:
        stream.feed(row)
    if error is not None:
        stream.fail(error)
    found = [json.loads(event.json) for event in stream.take(0, 10_000)]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_the_items_of_a_response() -> None:
    found = events(rows(ANSWER, list(range(0, 500, 3))))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert [kind for kind, _ in itertools.groupby(kinds)] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
        "output_item.done",
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
        *("output_item.done", "completed"),
    ]
    response = found[-1]["response"]
    thought, message, *calls = response["output"]
    assert thought["type"] == "reasoning" and thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["text"] == "Look:"
    assert [(call["name"], call["arguments"]) for call in calls] == [("f", '{"x": 1}')] * 2
    assert len({item["id"] for item in response["output"]}) == 4 and len({c["call_id"] for c in calls}) == 2
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 2
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == response["output"] and [event["output_index"] for event in found if "item" in event] == [
        *(0, 0, 1, 1, 2, 2, 3, 3)
    ]


@given(st.lists(st.integers(0, 500), max_size=20), st.sampled_from(list(Finish)[1:3]))
def test_events_are_a_function_of_the_tokens(cuts: list[int], finish: Finish) -> None:
    """Rows of several tokens, as a slow reader gets them, make the events that single ones make."""
    single = rows(ANSWER, cuts, finish=finish)
    whole = TextRow(
        1,
        0,
        ANSWER,
        len(single),
        finish,
        usage=single[-1].usage,
        pieces=tuple(len(row.text) for row in single) if len(single) > 1 else (),
    )
    apart, together = events(single), events([whole])
    for event in (*apart, *together):
        event.get("response", {}).pop("completed_at", None)
    assert apart == together


def test_an_error_leaves_what_there_was() -> None:
    found = events(rows(ANSWER[:-20], [3], finish=Finish.NONE), ErrorBody(500, "Lost."))
    response = found[-1]["response"]
    assert found[-1]["type"] == "response.failed" and response["status"] == "failed"
    assert [item["status"] for item in response["output"]] == [*["completed"] * 3, "incomplete"]
