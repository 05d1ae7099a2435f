"""Steps that are shorter than `burst_us` run several in a row, where nobody is made to wait for it."""

from __future__ import annotations

import pytest

from actors.scheduler.stride import MOST, Stride
from protocols.messages import StopHere
from tests.sim.world import World, tokens_of

STEP_US = 6_000
"""About what the world's executor takes for a step."""


def rounds(world: World) -> list[int]:
    return [plan.rounds for plan in world.plans if plan.decodes]


def learnt(elapsed_us: int, rows: int) -> Stride:
    stride = Stride(8_000)
    for _ in range(20):
        stride.took(elapsed_us * 2, 2, rows)
    return stride


def test_the_longer_a_step_the_fewer_rounds() -> None:
    assert Stride(8_000).rounds(1, watched=True) == 1, "nothing is known yet"
    for elapsed, rounds in ((1_000, 8), (8_000, 1), (20_000, 1), (10, MOST)):
        stride = learnt(elapsed, 4)
        assert stride.rounds(4, watched=True) == rounds
        assert stride.rounds(4, watched=False) == min(MOST, max(1, 4 * 8_000 // elapsed))
    assert Stride(0).rounds(1, watched=False) == 1


def test_results_of_a_crowd_may_wait_longer() -> None:
    """In proportion to its rows, and not beyond what nobody watches."""
    rounds = [learnt(2_000, rows).rounds(rows, watched=True) for rows in (1, 16, 24, 32, 64, 640)]
    assert rounds == [4, 4, 6, 8, 16, 16]
    assert all(learnt(2_000, rows).rounds(rows, watched=False) == 16 for rows in (1, 64, 640))


def test_more_rows_than_before_are_taken_to_last_longer() -> None:
    """So the first rounds of a crowd are not as many as those of the few before it."""
    few = learnt(4_000, 4)
    assert few.rounds(64, watched=True) == 1
    for _ in range(20):
        few.took(8_000, 1, 64)
    assert few.rounds(64, watched=True) == 4
    assert few.rounds(4, watched=True) == 1, "fewer are not known to be quicker"


def test_without_a_burst_every_step_is_by_itself() -> None:
    world = World(pages=100)
    world.submit(1, tokens_of(1, 2, 3), max_tokens=20)
    world.drain()
    assert set(rounds(world)) == {1}


@pytest.mark.parametrize("depth", [1, 2])
def test_rounds_end_with_the_sequence(depth: int) -> None:
    world = World(depth=depth, pages=100, burst_us=8 * STEP_US)
    world.submit(1, tokens_of(1, 2, 3), max_tokens=30)
    world.drain()
    world.verify()
    assert max(rounds(world)) > 4 and sum(rounds(world)) == 29


def test_who_waits_for_a_slot_that_is_free_is_not_made_to_wait_longer() -> None:
    world = World(depth=1, pages=100, slots=2, chunk_size=8, burst_us=8 * STEP_US)
    world.submit(1, tokens_of(1, 2, 3), max_tokens=200)
    for _ in range(8):
        world.step()
    assert world.plans[-1].rounds > 1
    world.submit(2, tokens_of(*range(40)), max_tokens=4)
    before = len(world.plans)
    world.drain()
    world.verify()
    assert [bool(plan.chunks) for plan in world.plans[before : before + 6]] == [True] * 6
    assert all(plan.rounds == 1 for plan in world.plans if plan.chunks)


def test_rounds_stay_within_the_tokens_of_a_step() -> None:
    world = World(depth=1, pages=400, slots=8, chunk_size=16, burst_us=100 * STEP_US)
    for rid in range(5):
        world.submit(rid, tokens_of(rid, 2), max_tokens=60)
    world.drain()
    world.verify()
    assert max(plan.rounds * len(plan.decodes) // 4 for plan in world.plans) <= 16
    assert max(rounds(world)) > 1


def test_a_few_pages_shorten_the_rounds_and_retract_nobody() -> None:
    """Looking ahead takes no page that another sequence needs."""
    preemptions = []
    for burst_us in (0, 16 * STEP_US):
        world = World(depth=1, pages=29, page_size=2, chunk_size=64, slots=4, radix=False, burst_us=burst_us)
        for rid in range(4):
            world.submit(rid, tokens_of(rid, 1, 2), max_tokens=20)
        world.drain()
        world.verify()
        assert world.load is not None
        preemptions.append(world.load.preemptions)
    assert preemptions[1] <= preemptions[0]


def test_a_stop_in_the_middle_of_rounds_ends_the_sequence_there() -> None:
    world = World(depth=2, pages=100, burst_us=16 * STEP_US)
    world.submit(1, tokens_of(1, 2, 3), max_tokens=200)
    while len(world.output.get(1, ())) < 30:
        world.step()
    world.turn(StopHere(1, 25))
    world.drain()
    assert world.load is not None and world.load.pages_owned == 0


def test_the_tokens_of_a_burst_come_together() -> None:
    world = World(depth=1, pages=100, burst_us=16 * STEP_US)
    world.submit(1, tokens_of(1, 2, 3), max_tokens=60)
    most = 0
    while world.air:
        before = len(world.output.get(1, ()))
        world.step()
        most = max(most, len(world.output.get(1, ())) - before)
    assert most > 4


def test_answers_that_nobody_watches_may_wait_longer() -> None:
    world = World(depth=1, pages=200, burst_us=2 * STEP_US)
    for rid in (1, 2):
        world.submit(rid, tokens_of(rid, 2, 3), max_tokens=60, whole=True)
    for _ in range(12):
        world.step()
    unwatched = world.plans[-1].rounds
    world.submit(3, tokens_of(7, 8), max_tokens=40)
    for _ in range(4):
        world.step()
    assert 0 < world.plans[-1].rounds < unwatched
    world.drain()
    world.verify()
