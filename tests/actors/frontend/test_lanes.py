"""Lanes: order within one, concurrency across them, and every bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.frontend.lanes import MAX_NAMED, MAX_QUEUED, MAX_RUNNING, Create, Lanes
from actors.frontend.live import Conversation
from protocols.errors import UserError
from protocols.openai.responses import ResponsesRequest


def create(lane: str | None, size: int = 1) -> Create:
    return Create(lane, ResponsesRequest(), size)


def test_one_at_a_time_a_lane_and_lanes_at_the_same_time() -> None:
    lanes = Lanes(1000)
    first, second, other = create("a"), create("a"), create(None)
    for one in (first, second, other):
        lanes.offer(one)
    assert lanes.start() == [first, other]
    assert lanes.start() == []
    assert (lanes.waiting, lanes.held) == (1, 3)
    lanes.end("a")
    assert lanes.start() == [second]
    lanes.end(None)
    lanes.end("a")
    assert lanes.idle


def test_running_is_bounded_first_come_first_served() -> None:
    lanes = Lanes(1000)
    offered = [create(f"lane{i}") for i in range(MAX_RUNNING + 3)]
    for one in offered:
        lanes.offer(one)
    assert lanes.start() == offered[:MAX_RUNNING]
    lanes.end("lane5")
    assert lanes.start() == [offered[MAX_RUNNING]]


@pytest.mark.parametrize("name", ["", "a b", "ä", "a/b", "x" * 257, "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UserError) as caught:
        Lanes(1000).offer(create(name))
    assert (caught.value.body.status, caught.value.body.code) == (400, "invalid_stream_id")


def test_names_are_bounded_but_known_ones_go_on() -> None:
    lanes = Lanes(1000)
    for i in range(MAX_NAMED):
        lanes.offer(create(f"{i}"))
    with pytest.raises(UserError) as caught:
        lanes.offer(create("more"))
    assert caught.value.body.code == "websocket_stream_limit_reached"
    lanes.offer(create("0"))
    lanes.offer(create(None))


def test_waiting_is_bounded_by_count_and_by_bytes() -> None:
    lanes = Lanes(1000)
    for _ in range(MAX_QUEUED):
        lanes.offer(create(None))
    with pytest.raises(UserError) as caught:
        lanes.offer(create(None))
    assert (caught.value.body.status, caught.value.body.code) == (429, "rate_limit_exceeded")
    lanes = Lanes(1000)
    lanes.offer(create(None, 5000))
    with pytest.raises(UserError):
        lanes.offer(create(None, 1))


def test_only_the_latest_response_of_a_lane_is_recalled() -> None:
    lanes = Lanes(1000)
    one, two = Conversation(size=1), Conversation(size=2)
    lanes.remember("a", "resp_1", one)
    lanes.remember(None, "resp_2", two)
    assert lanes.recall("resp_1") is one
    lanes.remember("a", "resp_3", two)
    assert lanes.recall("resp_1") is None and lanes.recall("resp_3") is two


@given(st.lists(st.sampled_from(["offer a", "offer b", "offer c", "end"]), max_size=60))
def test_any_history_keeps_the_order_of_every_lane(moves: list[str]) -> None:
    lanes = Lanes(10**6)
    offered: dict[str | None, list[Create]] = {"a": [], "b": [], "c": []}
    started: dict[str | None, list[Create]] = {"a": [], "b": [], "c": []}
    running: list[str | None] = []
    for move in moves:
        if move == "end" and running:
            lanes.end(running.pop(0))
        elif move != "end":
            one = create(move[-1])
            lanes.offer(one)
            offered[one.lane].append(one)
        for one in lanes.start():
            assert one.lane not in running
            running.append(one.lane)
            started[one.lane].append(one)
    for lane in offered:
        assert all(a is b for a, b in zip(started[lane], offered[lane], strict=False))
        waiting = len(started[lane]) < len(offered[lane])
        assert not waiting or lane in running
