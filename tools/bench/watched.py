"""`python -m tools.bench watched`: what metrics and traces cost, in processor time for each token.

Seconds say little about some per cent on a machine that others use too; what the actors took of the processor
does. The hash executor makes a step at each `--step-ms` and the load does not fill the machine, so every
message carries as many tokens however busy the machine is. In one company, `trace.sample` changes the share
that is traced between short rounds, each of which stands between two without: a ratio is of neighbours.

What is left when nothing is traced (counters, histograms, questions whether anybody traces) cannot be turned
off. So all of it is timed by itself, too: the very calls that the actors make for a step, on a black box of
their own, with nobody, some and everybody traced. That is exact where rounds are not.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from actors.frontend import instruments as frontend
from actors.scheduler import instruments as scheduler
from actors.tokenizer import instruments as tokenizer
from protocols.messages import Submit, TextRow, TokenRow
from protocols.plan import Plan, SlotOpen, StepDone
from protocols.sampling import SamplingParams
from protocols.spans import SpanName
from runtime import admin
from runtime.blackbox import BlackBox
from tools.actorctl.serve import DEMO_MODEL
from tools.bench import load
from tools.bench.processor import Meter
from tools.bench.serve import Address, company, random_prompts
from tools.bench.statistics import number

SHARES = (0.01, 0.1, 1.0)
_ACTORS = ("frontend.0", "tokenizer.0", "scheduler.0", "executor.0")
_SAMPLED = f"00-{'1' * 32}-{'1' * 16}-01"
_STEPS = 2000
"""Steps of one timing of the calls alone."""


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Processor time without, divided by that with: median of the rounds, its 95 % interval, quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: list[float]) -> Ratio:
        """The interval is that of the order statistics, which asks nothing of the distribution."""
        ordered, count = sorted(ratios), len(ratios)
        reach = 0.98 * count**0.5
        low, high = max(int(count / 2 - reach), 0), min(int(count / 2 + reach), count - 1)
        return cls(statistics.median(ordered), ordered[low], ordered[high])

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}–{self.high:.3f})"


@click.command()
@click.option("--clients", default=32, show_default=True)
@click.option("--requests", default=64, show_default=True, help="Requests of a round.")
@click.option("--output", default=128, show_default=True, help="Tokens of an answer.")
@click.option("--step-ms", default=2.0, show_default=True)
@click.option("--rounds", default=20, show_default=True, help="Rounds of each share.")
@click.option("--json", "json_path", type=click.Path(path_type=pathlib.Path), help="Write the figures here.")
def watched(
    clients: int, requests: int, output: int, step_ms: float, rounds: int, json_path: pathlib.Path | None
) -> None:
    """What being watched costs: traces of a share of the requests, and what cannot be turned off."""
    workload = load.Workload("bench", clients, random_prompts(requests, 8), output)
    options = ["--executor", "hash", "--step-ms", str(step_ms), "--burst-ms", "0"]
    running = ["--max-running", str(clients), "--served-name", "bench"]
    with company([str(DEMO_MODEL), *running, *options]) as address:
        costs = _Costs(address, workload)
        costs.of(0.0)
        ratios = {share: [costs.ratio(share) for _ in range(rounds)] for share in SHARES}
        off = costs.least
    figures: dict[str, Any] = {
        "us_per_token": off,
        "us_alone": {traced: alone_us(clients, traced) for traced in (0, 1, clients // 10, clients)},
        "ratios": {share: dataclasses.asdict(Ratio.of(found)) for share, found in ratios.items()},
    }
    for line in _table(figures, {share: Ratio.of(found) for share, found in ratios.items()}, clients):
        click.echo(line)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2))


class _Costs:
    """Rounds of one company."""

    def __init__(self, address: Address, workload: load.Workload) -> None:
        self._address, self._workload = address, workload
        self._before = 0.0
        self._off: list[float] = []

    @property
    def least(self) -> float:
        """µs a token without traces of the calmest round: any share of it is largest then."""
        return min(self._off)

    def of(self, share: float) -> float:
        """µs of a round in which this share is traced."""
        address = self._address
        admin.ask(address.control, {"verb": "trace.sample", "share": share})
        meter = Meter({name: address.pids[name] for name in _ACTORS})
        run = load.run(address.host, address.port, self._workload, load.HttpDialogue)
        took = sum(use.seconds for use in meter.read().values())
        cost = 1e6 * took / sum(receipt.tokens for receipt in run.receipts)
        if not share:
            self._before = cost
            self._off.append(cost)
        return cost

    def ratio(self, share: float) -> float:
        """That of a round without any, the mean of the one before and the one behind, by that of one with."""
        before, cost = self._before, self.of(share)
        return (before + self.of(0.0)) / 2 / cost


# The calls alone.


def alone_us(rows: int, traced: int = 0) -> dict[str, float]:
    """µs a token of each actor's calls in a step of so many rows, of which some are traced."""
    calls = {
        "frontend": _frontend(rows, traced),
        "tokenizer": _tokenizer(rows, traced),
        "scheduler": _scheduler(rows, traced),
        "executor": _executor(traced),
    }
    return {name: _timed(call) / rows for name, call in calls.items()}


def _timed(call: Callable[[], None]) -> float:
    """µs of the processor for a call: the least of some timings, as what disturbs only adds."""
    found = []
    for _ in range(5):
        begun = time.thread_time_ns()
        for _ in range(_STEPS):
            call()
        found.append((time.thread_time_ns() - begun) / 1e3 / _STEPS)
    return min(found)


@dataclasses.dataclass
class _Choice:
    """As `frontend.Timed`."""

    rid: int
    traced: bool = False
    arrived: int = 1
    last: int = 1
    resumed: bool = False


def _frontend(rows: int, traced: int) -> Callable[[], None]:
    instruments = frontend.Instruments(BlackBox.private())
    pairs = [(_Choice(rid, rid < traced), TextRow(rid, 0, " word", 8)) for rid in range(rows)]

    def step() -> None:
        instruments.delivering()
        for choice, row in pairs:
            instruments.heard(choice, row)
        instruments.delivered()

    return step


def _tokenizer(rows: int, traced: int) -> Callable[[], None]:
    instruments = tokenizer.Instruments(BlackBox.private())
    instruments.follow(range(traced))
    token_rows = tuple(TokenRow(rid, 7, (5,)) for rid in range(rows))

    def step() -> None:
        if start := instruments.begin():
            instruments.detokenised(token_rows, start)

    return step


def _scheduler(rows: int, traced: int) -> Callable[[], None]:
    instruments = scheduler.Instruments(BlackBox.private())
    slots = np.arange(rows, dtype="<i4").tobytes()
    token_rows = [TokenRow(rid, 7, (5,)) for rid in range(rows)]
    for rid in range(rows):
        instruments.heard(Submit(rid, 0, 0, b"", SamplingParams(), trace=_SAMPLED if rid < traced else ""))
    opens = tuple(SlotOpen(slot, slot, SamplingParams(), 0, 8, 0) for slot in range(rows))
    instruments.launched(Plan(1, 0, opens=opens))
    instruments.heard(StepDone(1, 0, b"", b"", 1))
    plan, done = Plan(1, 1, decodes=slots), StepDone(1, 1, slots, slots, 1)

    def step() -> None:
        instruments.launched(plan)
        instruments.heard(done)
        instruments.turned(1, 1)
        instruments.finished(token_rows)

    return step


def _executor(traced: int) -> Callable[[], None]:
    box = BlackBox.private()

    def step() -> None:
        if traced or box.recording:
            box.span(SpanName.STEP, 0, time.monotonic_ns(), 1, 32, 1, 2)

    return step


def _table(figures: dict[str, Any], ratios: dict[float, Ratio], clients: int) -> list[str]:
    off = figures["us_per_token"]
    lines = [
        f"Without traces the actors take {number(off)} µs of the processor a token.",
        "\n| traced, of all running | calls alone, µs a token | of it | without them ÷ with them |",
        "|---" * 4 + "|",
    ]
    nothing = sum(figures["us_alone"][0].values())
    for traced, alone in figures["us_alone"].items():
        total = sum(alone.values())
        told = ", ".join(f"{name} {number(each)}" for name, each in alone.items())
        ratio = (off - nothing) / (off - nothing + total)
        lines.append(f"| {traced} of {clients} | {number(total)} | {told} | {ratio:.3f} |")
    lines += ["\n| traced | rounds: processor time without ÷ with |", "|---|---|"]
    return [*lines, *(f"| {share:.0%} | {ratio} |" for share, ratio in ratios.items())]
