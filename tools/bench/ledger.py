"""What the ledger costs: the scheduler's commits beside the steps of a company that serves.

Nothing in the scheduler can leave a commit out, so the cost is measured apart: a real ledger in shared memory
takes what one decode step commits, in the very calls that the scheduler makes. A company then serves, and the
period of its steps, and how many tokens each yields, is read from its board. If all commits were on the
way from one step to the next, leaving them out would shorten the period by their time, so

    tokens/s with ledger ÷ without  ≥  (period - commits) ÷ period

With two plans in flight the executor computes the next step meanwhile, and the true ratio lies nearer to 1.
"""

from __future__ import annotations

import dataclasses
import time

import click
import trio

from protocols.config import Config, read_model_card
from runtime.ledger import Ledger
from runtime.wiring import ledger_layout
from tools.actorctl.serve import DEMO_MODEL
from tools.bench.statistics import Spread, number, spread
from tools.chaos import load
from tools.chaos.company import Company, company

STEPS = 200
"""Steps of one measurement: tokens of each choice."""
WARM_UP = 1.0
"""Seconds of serving before the board is read."""


def commit_us(choices: int, repeats: int) -> Spread:
    """Microseconds that the commits of one step take, a token for each of `choices` choices."""
    config = Config(read_model_card(DEMO_MODEL), max_open=choices)
    return spread([_measure(config, choices) for _ in range(repeats + 1)][1:])


def _measure(config: Config, choices: int) -> float:
    ledger = Ledger.create(ledger_layout(config))
    rids = [rid for _ in range(choices) if (rid := ledger.claim(0)) is not None]
    start = time.perf_counter()
    for token in range(STEPS):
        for rid in rids:
            ledger.commit(rid, (token,))
    seconds = time.perf_counter() - start
    ledger.close()
    return seconds / STEPS * 1e6


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a company did for a while. period_us: from one step to the next; tokens: committed in a step."""

    period_us: float
    tokens: float


async def served(subject: Company, streams: int, seconds: float) -> Steps:
    """Serve `streams` clients for `seconds` and read the scheduler's counters."""
    await subject.ready()
    asked = load.asks(subject.model, 2 * streams, 200, seed=0)
    counts: list[tuple[float, int, int]] = []

    async def watch() -> None:
        for pause in (WARM_UP, seconds):
            await trio.sleep(pause)
            status = await subject.status()
            (row,) = (actor for actor in status["actors"] if actor["kind"] == "scheduler")
            counts.append((time.perf_counter(), row["steps_total"], row["generated_tokens_total"]))

    await load.under_fire(subject, asked, streams, watch)
    (t0, steps0, tokens0), (t1, steps1, tokens1) = counts
    return Steps((t1 - t0) / (steps1 - steps0) * 1e6, (tokens1 - tokens0) / (steps1 - steps0))


@click.command("ledger")
@click.option("--streams", default=32, show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="Of serving, a round.")
@click.option("--repeats", default=3, show_default=True)
def ledger(streams: int, seconds: float, repeats: int) -> None:
    """The cost of committing tokens before they are sent."""
    ratios = []
    for _ in range(repeats):
        with company(["--max-running", str(streams)]) as subject:
            steps = trio.run(served, subject, streams, seconds)
        cost = commit_us(max(1, round(steps.tokens)), 3)
        ratios.append((steps.period_us - cost.median) / steps.period_us)
        click.echo(
            f"{steps.tokens:.1f} tokens a step, a step each {number(steps.period_us)} µs, commits {cost} µs"
        )
    click.echo(f"tokens/s with ledger ÷ without: at least {spread(ratios)}")
