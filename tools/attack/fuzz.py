"""`python -m tools.attack fuzz`: random cases at one door of a company whose neighbours' streams are checked.

A case is a function of the seed, the worker and its number, so a finding comes again with the same seed.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping

import click
import trio

from tools.attack.doors import Door, FrameDoor, HttpDoor, OrderDoor
from tools.attack.watch import CHOICES, SAMPLES, Watch
from tools.chaos import load
from tools.chaos.company import Company, company

DOORS: Mapping[str, Callable[[Company], Door]] = {
    "http": HttpDoor,
    "websocket": FrameDoor,
    "admin": OrderDoor,
}
NEIGHBOURS = 4
CONTEXT = 256


@dataclasses.dataclass
class Findings:
    """A run's result. wrong: answers that must not be; checked: answers of neighbours; bad: those that were
    not what they were in peace; left: what changed in the company."""

    door: str
    cases: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)
    checked: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)
    growths: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not (self.wrong or self.bad or self.left)

    def lines(self) -> list[str]:
        """The report as Markdown."""
        rows: list[tuple[str, object]] = [
            (f"cases at the {self.door} door", f"{self.cases:,} in {self.seconds:.0f} s"),
            ("outcomes", ", ".join(f"{name}: {n:,}" for name, n in sorted(self.outcomes.items()))),
            ("wrong answers", len(self.wrong)),
            ("neighbours' answers checked, not as in peace", f"{self.checked:,}, {len(self.bad)}"),
            ("restarts, leaks, errors in the log", len(self.left)),
            ("growth after the warm-up", ", ".join(f"{k} {v:+.1%}" for k, v in self.growths.items())),
        ]
        table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        return [*table, "", *(f"- {what}" for what in (*self.wrong[:20], *self.bad[:20], *self.left[:20]))]


async def attack(
    subject: Company, door: str, *, count: int, seconds: float, workers: int, seed: int, max_open: int
) -> Findings:
    """`count` cases at a running company, or as many as fit in `seconds`, by `workers` attackers at once."""
    found, watch = Findings(door), Watch(subject, max_open)
    asked = load.asks(subject.model, 2 * NEIGHBOURS, 40, seed)
    peace = await load.in_peace(subject, asked)
    await watch.begin()
    began, stride = time.monotonic(), max(1, count // SAMPLES)

    def goes_on() -> bool:
        return found.cases < count and time.monotonic() - began < seconds

    async def one(number: int) -> None:
        rng, attacker = random.Random(f"{seed}/{number}"), DOORS[door](subject)
        while goes_on():
            cases, wrong = await attacker.play(rng)
            if found.cases // stride < (found.cases + cases) // stride:
                watch.sample(found.cases)
            found.cases += cases
            found.wrong += [wrong] * bool(wrong)
        await attacker.aclose()
        found.outcomes += attacker.outcomes

    async def all_of_them() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(workers):
                nursery.start_soon(one, number)

    receipts = await load.under_fire(subject, asked, NEIGHBOURS, all_of_them)
    found.seconds = time.monotonic() - began
    found.checked = len(receipts)
    found.bad = [f"request {v.index}: {v.what}" for v in load.verdicts(receipts, peace)]
    found.left = await watch.end()
    found.growths = watch.growths()
    return found


def slots_for(workers: int) -> int:
    """Ledger slots that `workers` attackers can never fill."""
    return 4 * CHOICES * workers


def fuzzed(door: str, *, count: int, seconds: float, workers: int, seed: int) -> Findings:
    """A run against a company of its own."""
    options = ["--executor", "hash", "--max-model-len", str(CONTEXT), "--max-open", str(slots_for(workers))]

    async def main(subject: Company) -> Findings:
        await subject.ready()
        return await attack(
            subject,
            door,
            count=count,
            seconds=seconds,
            workers=workers,
            seed=seed,
            max_open=slots_for(workers),
        )

    with company(options) as subject:
        found = trio.run(main, subject)
        found.left += subject.end()
    return found


@click.command()
@click.argument("door", type=click.Choice(tuple(DOORS)))
@click.option("--count", default=100_000, show_default=True, help="Cases: requests or frames.")
@click.option("--seconds", default=float("inf"), help="End after so many, however many cases that were.")
@click.option("--workers", default=8, show_default=True, help="Attackers at once.")
@click.option("--seed", default=0, show_default=True)
def fuzz(door: str, **options: float) -> None:
    """Fuzz one DOOR. Exits 1 unless nothing at all was found."""
    found = fuzzed(door, **options)  # type: ignore[arg-type]
    click.echo("\n".join(found.lines()))
    sys.exit(not found.clean)
