"""How many threads compute, on any machine."""

from __future__ import annotations

import pytest

from gpu.cpu.cores import Threads, threads


@pytest.mark.parametrize(
    ("cores", "kernels", "torch"),
    [(1, 1, 1), (2, 2, 1), (3, 3, 2), (4, 3, 3), (8, 7, 7), (16, 15, 15), (17, 15, 15), (64, 60, 60)],
)
def test_few_cores_are_shared_and_of_many_some_are_left_to_the_other_actors(
    cores: int, kernels: int, torch: int
) -> None:
    assert threads(cores) == Threads(kernels, torch)


@pytest.mark.parametrize("cores", (1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 64, 192))
def test_replicas_never_take_more_than_all_and_always_something(cores: int) -> None:
    for replicas in (1, 2, 3, 64):
        taken = threads(cores, replicas)
        assert taken.kernels >= taken.torch >= 1
        assert replicas * taken.kernels <= max(cores, replicas)
        assert replicas * taken.torch <= max(cores - 1, replicas)


def test_replicas_share_what_one_would_have() -> None:
    assert [threads(8, replicas) for replicas in (2, 3, 64)] == [Threads(3, 3), Threads(2, 2), Threads(1, 1)]


def test_the_option_wins() -> None:
    assert threads(2, replicas=4, wanted=3) == Threads(3, 3)
