"""The same requests give the same tokens however they are scheduled: any depth, cache or none, alone or in
a crowd, with room to spare or retracted again and again."""

from __future__ import annotations

import random

import pytest

from protocols.config import Policy
from protocols.request import Finish
from tests.sim.world import World, tokens_of

Outcome = dict[int, tuple[tuple[int, ...], Finish]]


def requests(seed: int, count: int = 24, longest: int = 10) -> list[dict[str, object]]:
    """Arguments for `World.submit`: a few shared stems, all sorts of lengths."""
    rng = random.Random(seed)
    stems = [[rng.randrange(40) for _ in range(24)] for _ in range(3)]
    return [
        {
            "rid": rid,
            "prompt": tokens_of(*rng.choice(stems)[: rng.randrange(1, longest)]),
            "max_tokens": rng.randrange(1, 38),
            "stops": rng.choice([(), (), (1,)]),
            "choice": rng.randrange(2),
            "seed": rng.randrange(3),
        }
        for rid in range(count)
    ]


def outcome(world: World, workload: list[dict[str, object]], seed: int) -> Outcome:
    """Run `workload` with random arrivals; what each request gave."""
    rng = random.Random(seed)
    for request in workload:
        world.submit(**request)  # type: ignore[arg-type]
        for _ in range(rng.randrange(3)):
            world.step()
    world.drain()
    world.verify()
    return {rid: (tuple(tokens), world.finish[rid]) for rid, tokens in world.output.items()}


@pytest.mark.parametrize("seed", range(3))
def test_schedules_do_not_change_tokens(seed: int) -> None:
    workload = requests(seed)
    alone: Outcome = {}
    for request in workload:
        alone |= outcome(World(depth=1, pages=24, radix=False), [request], seed)
    preemptions = accepted = longest = 0
    for depth in (1, 2, 4):
        for radix in (False, True):
            for pages, guesses, burst_us in (
                (12, 0, 0),
                (24, 0, 0),
                (200, 0, 0),
                (12, 0, 50_000),
                (200, 0, 100_000),
                (12, 4, 0),
                (24, 6, 0),
                (200, 3, 0),
            ):
                policy = list(Policy)[depth % 3]
                world = World(
                    depth=depth, pages=pages, radix=radix, policy=policy, guesses=guesses, burst_us=burst_us
                )
                assert outcome(world, workload, seed) == alone
                assert world.load is not None
                preemptions += world.load.preemptions
                accepted += world.load.accepted
                longest = max(longest, *(plan.rounds for plan in world.plans))
    assert accepted > 0 and longest > 4
    assert preemptions > 0, "the small pools were meant to force retractions"


def test_the_prefix_cache_saves_work() -> None:
    workload = requests(7, count=60, longest=24)
    computed = {}
    for radix in (False, True):
        world = World(depth=2, pages=200, radix=radix)
        outcome(world, workload, 7)
        computed[radix] = sum(len(chunk.tokens) // 4 for plan in world.plans for chunk in plan.chunks)
    assert computed[True] < 0.5 * computed[False]
