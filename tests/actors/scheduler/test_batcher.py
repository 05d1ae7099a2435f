"""Admission by estimate, the order of waiting, prefixes under way, and the size of plans."""

from __future__ import annotations

import msgspec
import pytest

from actors.scheduler import batcher
from actors.scheduler.estimate import DECAY_STEPS, FLOOR, INITIAL, NewTokenRatio
from actors.scheduler.queue import LPM_LIMIT, WaitingQueue
from actors.scheduler.sequence import Sequence
from protocols.config import Policy
from protocols.messages import Submit
from protocols.sampling import SamplingParams
from tests.sim.world import VOCAB, World, tokens_of


def sequence(order: int, priority: int = 0, *, retracted: bool = False, deaths: int = 0) -> Sequence:
    submit = Submit(order, 0, 0, tokens_of(1, 2), SamplingParams(seed=1, max_tokens=4), priority)
    made = Sequence(submit, order)
    made.retracted, made.deaths = retracted, deaths
    return made


def test_the_ratio_decays_with_decoding_and_rises_with_retraction() -> None:
    ratio = NewTokenRatio()
    assert ratio.value == INITIAL
    for _ in range(DECAY_STEPS // 2):
        ratio.decoded(1)
    assert ratio.value == pytest.approx((INITIAL + FLOOR) / 2)
    for _ in range(DECAY_STEPS):
        ratio.decoded(1)
    assert ratio.value == FLOOR
    ratio.retracted(decoded=300, allowed=999, sequences=5)
    assert ratio.value == pytest.approx(0.4)
    ratio.retracted(decoded=0, allowed=999, sequences=1)
    assert ratio.value == pytest.approx(0.4), "running out of pages is no reason for optimism"
    ratio.retracted(decoded=5000, allowed=999, sequences=1)
    assert ratio.value == 1.0
    ratio.idle()
    assert ratio.value == INITIAL


def test_suspects_then_the_retracted_stand_in_front() -> None:
    queue = WaitingQueue(Policy.PRIORITY)
    crowd = [sequence(0), sequence(1, -5), sequence(2, 9, retracted=True), sequence(3, deaths=2)]
    for one in crowd:
        queue.add(one)
    assert [one.order for one in queue.first(9, lambda one: 0)] == [3, 2, 1, 0]
    assert queue.suspect() is crowd[3]
    queue.remove(crowd[3])
    queue.remove(crowd[1])
    assert [one.order for one in queue.all()] == [2, 0] and queue.suspect() is None


def test_lpm_gives_up_looking_when_too_many_wait() -> None:
    queue = WaitingQueue(Policy.LPM)
    for order in range(LPM_LIMIT):
        queue.add(sequence(order))
    assert queue.first(1, lambda one: one.order)[0].order == LPM_LIMIT - 1
    queue.add(sequence(LPM_LIMIT))
    assert queue.first(1, lambda one: one.order)[0].order == 0


def test_admission_keeps_room_for_the_running_to_grow() -> None:
    """32 tokens: each request of 4 + 16 expects 4 + 0.7 * 16 of them, so the second must wait."""
    world = World(depth=1, pages=16, page_size=2, chunk_size=64, radix=False)
    mail = [
        world.submit(rid, tokens_of(*range(4)), choice=rid, max_tokens=20, deliver=False) for rid in (1, 2)
    ]
    world.turn(*mail)
    assert [opened.rid for opened in world.plans[0].opens] == [1]
    world.drain()
    world.verify()
    assert world.load is not None and world.load.preemptions == 0


def test_nobody_overtakes_for_want_of_pages() -> None:
    world = World(depth=1, pages=16, page_size=2, chunk_size=64, radix=False)
    world.submit(1, tokens_of(*range(8)), max_tokens=12)
    world.step()
    world.submit(2, tokens_of(*range(10, 34)), max_tokens=4)
    world.submit(3, tokens_of(40), max_tokens=1)
    world.drain()
    world.verify()
    assert [opened.rid for plan in world.plans for opened in plan.opens] == [1, 2, 3]


def test_a_complete_prefill_holds_nobody_back_any_more() -> None:
    world = World(depth=1)
    world.submit(1, tokens_of(*range(12)), max_tokens=9)
    world.step()
    assert world.core.batcher is not None
    upcoming = world.core.batcher.running.upcoming
    other = Sequence(msgspec.structs.replace(world.submits[1], rid=2), 2)
    assert not upcoming.covers(other, other.known(), 0)
    assert world.core.batcher.cache.prefix(other, other.known()) == 2


def test_a_plan_stays_small_enough_for_a_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "HEAVY", 30)
    world = World(depth=1, chunk_size=64, pages=64)
    mail = [
        world.submit(rid, tokens_of(*range(rid, rid + 5)), penalty=1.1, deliver=False) for rid in range(4)
    ]
    world.turn(*mail)
    assert len(world.plans[0].opens) == 2
    world.drain()
    world.verify()


def test_logit_biases_count_towards_the_size_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "HEAVY", 100)
    bias = tuple((token, -100.0) for token in range(VOCAB))
    assert len(msgspec.msgpack.encode(bias)) <= batcher.BIAS_BYTES * len(bias)
    world = World(depth=1, chunk_size=64, pages=64)
    mail = [world.submit(rid, tokens_of(rid, 9), deliver=False) for rid in range(2)]
    biased = SamplingParams(seed=1, max_tokens=8, logit_bias=bias)
    world.turn(*(msgspec.structs.replace(submit, sampling=biased) for submit in mail))
    assert [len(plan.opens) for plan in world.plans] == [1]
