"""Soak: thousands of requests with a kill now and then, and nothing in the company grows."""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys
from collections.abc import Sequence

import click
import trio

from tools.chaos import load, traces
from tools.chaos.checker import Verdict
from tools.chaos.clients import Receipt
from tools.chaos.company import Company, company
from tools.chaos.nemesis import Nemesis

SAMPLES = 40
WARM_UP = 0.3
"""Share of the run that does not count for growth: caches fill, allocators settle."""
GROWTH = 0.05
"""Growth of memory from the first to the second half of the rest that still counts as flat."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A look at the company. root: private bytes of the supervisor; actors: of all others together;
    shared: bytes of shared memory; zombies, descriptors: of the supervisor."""

    requests: int
    root: int
    actors: int
    shared: int
    descriptors: int
    zombies: int


def look(root: int, requests: int) -> Sample:
    """Sample the company whose supervisor is process `root`."""
    children = traces.children(root)
    sizes = []
    for pid in children:
        try:
            sizes.append(traces.private(pid))
        except OSError:
            continue
    zombies = sum(state == "Z" for state in children.values())
    return Sample(
        requests,
        traces.private(root),
        sum(sizes),
        traces.shared_memory(root),
        traces.descriptors(root),
        zombies,
    )


def growth(values: Sequence[float]) -> float:
    """Relative growth between the medians of the halves of what follows the warm-up."""
    rest = values[int(WARM_UP * len(values)) :]
    half = len(rest) // 2
    first, second = statistics.median(rest[:half]), statistics.median(rest[half:])
    return (second - first) / max(first, 1.0)


@dataclasses.dataclass
class Soak:
    """A finished soak."""

    samples: list[Sample] = dataclasses.field(default_factory=list)
    receipts: list[Receipt] = dataclasses.field(default_factory=list)
    verdicts: list[Verdict] = dataclasses.field(default_factory=list)
    leaks: list[str] = dataclasses.field(default_factory=list)
    kills: int = 0

    def growths(self) -> dict[str, float]:
        """Relative growth of everything that should be flat."""
        columns = ("root", "actors", "shared", "descriptors")
        return {name: growth([float(getattr(sample, name)) for sample in self.samples]) for name in columns}

    def problems(self) -> list[str]:
        """What is wrong, in words."""
        wrong = [f"request {verdict.index}: {verdict.what}" for verdict in self.verdicts[:10]]
        wrong += self.leaks
        wrong += [f"{name} grew by {g:.1%}" for name, g in self.growths().items() if g > GROWTH]
        lasting = [sample.zombies for sample in self.samples[-3:]]
        return [*wrong, *(["zombies stay"] if min(lasting) > 0 else [])]

    def lines(self) -> list[str]:
        """The report as Markdown."""
        last = self.samples[-1]
        table = ["| requests | kills | bad | left |", "|---|---|---|---|"]
        table.append(f"| {len(self.receipts)} | {self.kills} | {len(self.verdicts)} | {len(self.leaks)} |")
        table += ["", "| | at the end | growth after the warm-up |", "|---|---|---|"]
        for name, change in self.growths().items():
            value = getattr(last, name)
            shown = value if name == "descriptors" else f"{value / 1e6:.1f} MB"
            table.append(f"| {name} | {shown} | {change:+.2%} |")
        return [*table, "", *(f"- {problem}" for problem in self.problems())]


async def run(subject: Company, *, requests: int, each: int, streams: int, tokens: int, seed: int) -> Soak:
    """Answer `requests` requests with a kill for each `each` of them."""
    await subject.ready()
    asked = load.asks(subject.model, 64, tokens, seed)
    peace = await load.in_peace(subject, asked)
    victims = ["executor", "scheduler", "tokenizer", "frontend"]
    nemesis = Nemesis(subject.address, victims, {"kill": 1.0}, 0.0, seed)
    found, order = Soak(), random.Random(seed)
    stride = max(1, requests // each // SAMPLES) * each

    async def one() -> None:
        while len(found.receipts) < requests:
            index = order.randrange(len(asked))
            answer, body = asked[index]
            found.receipts.append(await answer(subject.host, subject.port, body, index))
            done = len(found.receipts)
            if done % each == 0:
                await nemesis.kill_one()
            if done % stride == each // 2:  # half way between two kills, when every understudy is back
                found.samples.append(look(subject.process.pid, done))

    async with trio.open_nursery() as nursery:
        for _ in range(streams):
            nursery.start_soon(one)
    found.verdicts = load.verdicts(found.receipts, peace)
    found.kills = len(nemesis.log)
    return found


def soaked(*, requests: int, each: int, streams: int, tokens: int, seed: int) -> Soak:
    """A soak of a company whose ledger has few slots to lose."""
    options = ["--executor", "hash", "--max-running", str(streams), "--max-open", str(4 * streams)]
    with company(options) as subject:

        async def main() -> Soak:
            return await run(subject, requests=requests, each=each, streams=streams, tokens=tokens, seed=seed)

        found = trio.run(main)
        found.leaks = subject.end()
    return found


@click.command()
@click.option("--requests", default=10_000, show_default=True)
@click.option("--each", default=100, show_default=True, help="Requests from one kill to the next.")
@click.option("--streams", default=32, show_default=True)
@click.option("--tokens", default=24, show_default=True)
@click.option("--seed", default=0, show_default=True)
def soak(**options: int) -> None:
    """Answer thousands of requests under fire. Exits 1 if anything grows."""
    found = soaked(**options)
    click.echo("\n".join(found.lines()))
    sys.exit(bool(found.problems()))
