"""Short runs of `python -m tools.attack`: random cases at every door, and clients that vanish anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import trio

from tools.attack import disconnects, fuzz
from tools.chaos.company import Company, company

WORKERS = 2
CASES = {"http": 300, "websocket": 1000, "admin": 400}


@pytest.fixture(scope="module")
def subject() -> Iterator[Company]:
    """A company of small answers, which must end without a complaint in its log."""
    slots = str(fuzz.slots_for(WORKERS))
    options = ("--executor", "hash", "--max-model-len", str(fuzz.CONTEXT), "--max-open", slots)
    with company(options) as made:
        trio.run(made.ready)
        yield made
        assert made.end() == []


@pytest.mark.parametrize("door", CASES)
def test_fuzz(subject: Company, door: str) -> None:
    async def main() -> fuzz.Findings:
        return await fuzz.attack(
            subject,
            door,
            count=CASES[door],
            seconds=math.inf,
            workers=WORKERS,
            seed=5,
            max_open=fuzz.slots_for(WORKERS),
        )

    found = trio.run(main)
    assert found.clean, found.lines()
    assert found.cases >= CASES[door] and found.checked


def test_disconnects(subject: Company) -> None:
    async def main() -> disconnects.Departures:
        return await disconnects.play(subject, count=256, seconds=math.inf, clients=16, seed=5)

    found = trio.run(main)
    assert found.clean, found.lines()
    assert found.in_request and found.in_answer and found.reset and found.checked
    assert max(found.freed) < math.inf
