"""The response's state machine: the exact order of events, contiguous numbers, and readers that come late."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.frontend.response_events import Event
from actors.frontend.response_stream import TRANSITIONS, Move, Phase, ResponseStream
from protocols.errors import ErrorBody
from protocols.messages import TextLogprob, TextRow
from protocols.openai.responses import Response
from protocols.request import Finish, Usage


def stream(**options: Any) -> ResponseStream:
    document = Response(id="resp_1", created_at=1, status="queued", model="m", output=[])
    return ResponseStream(document, "msg_1", **options)


def row(text: str, finish: Finish = Finish.NONE, tokens: int = 1, **fields: Any) -> TextRow:
    return TextRow(1, 0, text, tokens, finish, usage=Usage(5, tokens, 2), **fields)


def documents(events: list[Event]) -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = [json.loads(event.json) for event in events]
    assert [document["type"] for document in parsed] == [event.kind for event in events]
    return parsed


def kinds(events: list[Event]) -> list[str]:
    return [event.kind.removeprefix("response.") for event in events]


BEGIN = ["created", "in_progress"]
ITEM = ["output_item.added", "content_part.added"]
DONE = ["output_text.done", "content_part.done", "output_item.done"]


def test_the_order_of_a_whole_response() -> None:
    s = stream()
    s.start()
    assert kinds(s.take(0, 99)) == BEGIN
    s.feed(row("Hel"))
    s.feed(row("lo", tokens=2))
    assert kinds(s.take(2, 99)) == [*ITEM, "output_text.delta", "output_text.delta"]
    s.feed(row("!", Finish.STOP, tokens=3))
    events = documents(s.take(0, 99))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [e["delta"] for e in events if "delta" in e] == ["Hel", "lo", "!"]
    assert [e["type"].removeprefix("response.") for e in events[7:]] == [*DONE, "completed"]
    last = events[-1]["response"]
    assert last["status"] == "completed"
    assert last["output"][0]["content"][0]["text"] == "Hello!"
    assert last["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 8,
    }
    assert s.finished_at(len(events)) and not s.finished_at(len(events) - 1)


@pytest.mark.parametrize(
    ("finish", "last", "status", "item"),
    [
        (Finish.STOP, "completed", "completed", "completed"),
        (Finish.LENGTH, "incomplete", "incomplete", "incomplete"),
        (Finish.ABORT, "incomplete", "cancelled", "incomplete"),
    ],
)
@pytest.mark.parametrize("text", ["", "some"])
def test_every_end(finish: Finish, last: str, status: str, item: str, text: str) -> None:
    s = stream()
    s.start()
    s.feed(row(text, finish))
    events = s.take(0, 99)
    delta = ["output_text.delta"] if text else []
    assert kinds(events) == [*BEGIN, *ITEM, *delta, *DONE, last]
    response = documents(events)[-1]["response"]
    assert response["status"] == status
    assert response["output"][0]["status"] == item
    reason = {"reason": "max_output_tokens"} if finish is Finish.LENGTH else None
    assert response["incomplete_details"] == reason


@pytest.mark.parametrize("text", ["", "some"])
def test_failure_comes_at_once(text: str) -> None:
    s = stream()
    s.start()
    s.feed(row(text))
    s.fail(ErrorBody(400, "Too long.", code="context_length_exceeded", param="input"))
    s.feed(row("late"))
    events = s.take(0, 99)
    assert kinds(events) == [*BEGIN, *([*ITEM, "output_text.delta"] if text else []), "failed"]
    error = documents(events)[-1]["response"]["error"]
    assert error["code"] == "context_length_exceeded" and error["message"] == "Too long."


def test_a_warm_up_says_nothing() -> None:
    s = stream(silent=True)
    s.start()
    s.feed(row("ignored", Finish.LENGTH))
    events = s.take(0, 99)
    assert kinds(events) == [*BEGIN, "completed"]
    assert documents(events)[-1]["response"]["output"] == []
    assert s.answer() == ({"role": "assistant", "content": ""}, 0)


def test_nothing_is_numbered_before_the_start() -> None:
    s = stream()
    s.feed(row("all", Finish.STOP))
    assert s.over and s.take(0, 99) == [] and s.phase is Phase.NEW
    s.start()
    assert kinds(s.take(0, 99)) == [*BEGIN, *ITEM, "output_text.delta", *DONE, "completed"]


def test_the_first_end_counts() -> None:
    s = stream()
    s.start()
    s.feed(row("a", Finish.STOP))
    s.cancel()
    s.fail(ErrorBody(500, "late"))
    assert s.document().status == "completed"


def test_logprobs_travel_with_their_delta() -> None:
    s = stream()
    s.start()
    entry = TextLogprob(("é", "é".encode(), float("-inf")), (("e", b"e", -0.5),))
    s.feed(row("é", Finish.STOP, logprobs=(entry,)))
    delta, done = (documents(s.take(4, 99))[i] for i in (0, 1))
    expected = {
        "token": "é",
        "logprob": -9999.0,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "e", "logprob": -0.5, "bytes": [101]}],
    }
    assert delta["logprobs"] == [expected] and done["logprobs"] == [expected]


def test_every_phase_but_the_last_ones_can_be_left() -> None:
    left = {phase for phase, _ in TRANSITIONS}
    ends = {Phase.COMPLETED, Phase.INCOMPLETE, Phase.CANCELLED, Phase.FAILED}
    assert left == set(Phase) - ends
    assert {move for phase, move in TRANSITIONS if phase is Phase.WRITING} == set(Move) - {
        Move.START,
        Move.TEXT,
    }
    with pytest.raises(KeyError):
        stream()._move(Move.STOP)


@given(
    st.lists(st.text(max_size=5), max_size=12),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=30),
    st.sampled_from([Finish.STOP, Finish.LENGTH, Finish.ABORT]),
)
def test_all_readers_see_the_same_numbered_events(
    texts: list[str], reads: list[tuple[int, int]], finish: Finish
) -> None:
    s = stream()
    s.start()
    seen: list[list[Event]] = [[], [], []]
    rows = [row(text) for text in texts] + [row("", finish)]
    for i, one in enumerate(rows):
        s.feed(one)
        for reader, limit in reads[i::13]:
            seen[reader] += s.take(len(seen[reader]), limit)
    for events in seen:
        while not s.finished_at(len(events)):
            events += s.take(len(events), 3)
    assert seen[0] == seen[1] == seen[2]
    parsed = documents(seen[0])
    assert [event["sequence_number"] for event in parsed] == list(range(len(parsed)))
    assert "".join(e["delta"] for e in parsed if e["type"].endswith("delta")) == "".join(texts)
    assert all(e["delta"] for e in parsed if e["type"].endswith("delta"))
    assert parsed[-4]["text"] == "".join(texts)
