"""Admission by adapters: no more run at once than have slots, and nobody waits for ever."""

from __future__ import annotations

import random

import pytest

from actors.scheduler.adapters import OVERTAKING, AdapterSlots
from protocols.adapters import Adapter
from protocols.orders import SetAdapters
from protocols.request import Finish
from tests.sim.world import World, tokens_of


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_more_adapters_than_slots_all_come_to_their_turn(depth: int) -> None:
    """`World` sees to it that no plan opens more than fit."""
    rng = random.Random(depth)
    world = World(depth=depth, loras=2, pages=24)
    for rid in range(40):
        prompt = tokens_of(*(rng.randrange(40) for _ in range(rng.randrange(1, 12))))
        world.submit(rid, prompt, adapter=rng.randrange(6), max_tokens=rng.randrange(1, 12))
        for _ in range(rng.randrange(3)):
            world.step()
        if rid == 20:
            world.restart()
        if rid == 30:
            world.restart_scheduler()
    world.drain()
    world.verify()
    assert set(world.finish) == set(range(40))


def test_those_with_a_slot_overtake_but_not_for_ever() -> None:
    world = World(loras=1, slots=4, pages=200)
    world.submit(0, tokens_of(1), adapter=1, max_tokens=30)
    world.submit(1, tokens_of(2), adapter=2, max_tokens=2)
    for rid in range(2, 2 * OVERTAKING):
        world.submit(rid, tokens_of(3, rid % 40), adapter=1, max_tokens=2)
    while 1 not in world.finish:
        assert world.step()
    before = sum(rid in world.finish for rid in range(2, 2 * OVERTAKING))
    assert OVERTAKING - 2 <= before <= OVERTAKING
    world.drain()
    world.verify()


def test_the_base_model_needs_no_slot() -> None:
    world = World(loras=1)
    world.submit(0, tokens_of(1), adapter=1, max_tokens=20)
    world.submit(1, tokens_of(1), adapter=2, max_tokens=20)
    world.submit(2, tokens_of(1), max_tokens=2)
    while 2 not in world.finish:
        assert world.step()
    assert not world.finish.keys() & {0, 1}
    world.drain()
    world.verify()


def test_prefixes_are_shared_within_an_adapter_only() -> None:
    world, prompt = World(loras=2), tokens_of(*range(13))
    for rid, adapter in enumerate((1, 2, 0, 1)):
        world.submit(rid, prompt, adapter=adapter, max_tokens=2)
        world.drain()
    assert world.cached == {3: 12}


def test_whoever_goes_through_an_unloaded_adapter_ends_with_a_sentence() -> None:
    world = World(loras=1, slots=2)
    for rid, adapter in enumerate((1, 1, 2, 0)):
        world.submit(rid, tokens_of(rid), adapter=adapter, max_tokens=20)
    world.step()
    world.turn(SetAdapters(()))
    assert [world.finish.get(rid) for rid in range(4)] == [Finish.ERROR] * 3 + [None]
    assert world.errors[0] == "The adapter of this request was unloaded."
    world.submit(4, tokens_of(1), adapter=9)
    assert world.finish[4] is Finish.ERROR
    world.drain()
    assert world.finish[3] is Finish.LENGTH


def test_pinned_adapters_keep_their_slots() -> None:
    slots = AdapterSlots(2, [Adapter(1, "a", "/", "", pinned=True), Adapter(2, "b", "/", "")])
    assert slots.fits(1) and slots.fits(2) and slots.fits(0)
    slots.take(2)
    assert not slots.fits(3) and slots.fits(1) and slots.fits(2)
    slots.give(2)
    assert slots.fits(3)
