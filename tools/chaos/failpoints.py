"""Point kills: every failpoint in every actor that passes it, again and again, while clients stream.

A sweep gives each (actor, point) a company of its own, in which the actor dies there in each of its first
`times` incarnations. A parade has one company in which all actors die at the same time, in their i-th
incarnation at their i-th point: short, and full of double faults.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import trio

from runtime.failpoints import POINTS, VARIABLE, Point
from tools.chaos import load
from tools.chaos.checker import Verdict
from tools.chaos.clients import Receipt
from tools.chaos.company import Company, company

PASSAGE = 9
"""The passage of a point at which to die: late enough that there is work in hand."""
SELDOM = {
    "send.StopHere": 1,
    "send.Generate": 2,
    "send.Submit": 2,
    "ledger.state": 2,
    "ledger.request": 2,
    "ledger.assign": 2,
}
"""The same for points that are passed once a request, or less often."""
LOOK_SECONDS = 0.1
WORK = 5
"""Pieces of work after which an actor may die again."""
GIVE_UP_SECONDS = 400.0
KINDS = ("executor", "scheduler", "tokenizer", "frontend", "balancer")


@dataclasses.dataclass
class Result:
    """What came of one case. deaths: incarnations lost by each actor of the case."""

    title: str
    deaths: int = 0
    receipts: list[Receipt] = dataclasses.field(default_factory=list)
    verdicts: list[Verdict] = dataclasses.field(default_factory=list)
    leaks: list[str] = dataclasses.field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Everybody died as often as was meant, and nobody saw it."""
        return not self.problems()

    def problems(self) -> list[str]:
        """What is wrong, in words."""
        return [*(f"request {verdict.index}: {verdict.what}" for verdict in self.verdicts), *self.leaks]


@dataclasses.dataclass(frozen=True)
class Case:
    """Rules for a company, and the incarnation that each actor is to reach. starting: the actor dies before
    it is ready in every second incarnation, and the campaign kills those in between."""

    title: str
    rules: str
    goals: Mapping[str, int]
    starting: bool = False


def passage(point: Point) -> int:
    """The passage of `point` at which to die."""
    return 1 if point.starting else SELDOM.get(point.name.rpartition(".")[0], PASSAGE)


def sweep(kinds: Sequence[str], points: Sequence[Point], action: str, times: int) -> Iterator[Case]:
    """One case for each actor kind and point."""
    for point in points:
        for actor in (f"{kind}.0".replace("balancer.0", "balancer") for kind in point.kinds if kind in kinds):
            incarnations = range(2, 2 * times + 1, 2) if point.starting else range(1, times + 1)
            rules = ";".join(f"{actor}/{point.name}={action}@{passage(point)}#{i}" for i in incarnations)
            yield Case(f"{actor} {point.name}", rules, {actor: incarnations[-1] + 1}, point.starting)


def parade(kinds: Sequence[str], points: Sequence[Point], rounds: int) -> Case:
    """One case with all points that are passed by running actors."""
    rules, goals = [], {}
    for kind in kinds:
        mine = [point for point in points if kind in point.kinds and not point.starting] * rounds
        actor = f"{kind}.0" if kind != "balancer" else kind
        rules += [f"{actor}/{point.name}=kill@{passage(point)}#{i}" for i, point in enumerate(mine, 1)]
        goals[actor] = len(mine) + 1
    return Case("parade", ";".join(rules), goals)


class Campaign:
    """Runs cases, one company each, against the same requests answered in peace."""

    def __init__(self, *, streams: int, count: int, tokens: int, seed: int, dp: int, step_ms: float) -> None:
        self._options = ["--executor", "hash", "--step-ms", str(step_ms), "--dp", str(dp)]
        self._options += ["--max-running", str(streams)]
        self._streams = streams
        self._load = count, tokens, seed
        with company(self._options) as subject:
            self._peace = trio.run(self._answer_in_peace, subject)

    async def _answer_in_peace(self, subject: Company) -> dict[int, Receipt]:
        await subject.ready()
        return await load.in_peace(subject, load.asks(subject.model, *self._load))

    def run(self, case: Case) -> Result:
        """One case."""
        result = Result(case.title)
        with company(self._options, environment={VARIABLE: case.rules}) as subject:
            trio.run(self._torment, subject, case, result)
            result.leaks += subject.end()
        return result

    async def _torment(self, subject: Company, case: Case, result: Result) -> None:
        await subject.ready()
        asked = load.asks(subject.model, *self._load)

        async def fire() -> None:
            with trio.move_on_after(GIVE_UP_SECONDS):
                while not await self._reached(subject, case, result):
                    await trio.sleep(LOOK_SECONDS)

        result.receipts = await load.under_fire(subject, asked, self._streams, fire)
        result.verdicts = load.verdicts(result.receipts, self._peace)
        missed = [actor for actor in (await subject.status())["actors"] if _is_behind(actor, case)]
        result.leaks += [
            f"{actor['name']} only got to incarnation {actor['incarnation']}" for actor in missed
        ]

    async def _reached(self, subject: Company, case: Case, result: Result) -> bool:
        """Whether every actor of the case is ready in the incarnation that it was to reach."""
        status = await subject.status()
        actors = [actor for actor in status["actors"] if actor["name"] in case.goals]
        result.deaths = sum(actor["restarts"] for actor in actors)
        for actor in actors:
            if case.starting and _is_next(actor, case.goals[actor["name"]]):
                os.kill(actor["pid"], signal.SIGKILL)
        return not any(_is_behind(actor, case) for actor in actors)


def _is_behind(actor: Mapping[str, Any], case: Case) -> bool:
    """Whether an actor of the case has deaths before it, or is not back from the last."""
    goal = case.goals.get(actor["name"], 0)
    return bool(actor["incarnation"] < goal or (goal and actor["state"] != "ready"))


def _is_next(actor: Mapping[str, Any], goal: int) -> bool:
    """Whether to kill an actor so that its successor dies as it starts; it may get some work done first."""
    return bool(actor["state"] == "ready" and actor["incarnation"] < goal and actor["work_tick"] >= WORK)


@click.command()
@click.option("--times", default=20, show_default=True, help="Deaths at each point.")
@click.option("--kinds", default=",".join(KINDS[:4]), show_default=True, help="Whose; balancer wants --dp 2.")
@click.option("--points", default="", help="Only points whose names begin so.")
@click.option("--action", type=click.Choice(["kill", "stop"]), default="kill", show_default=True)
@click.option("--parade", "in_parade", is_flag=True, help="All points in one company instead of one each.")
@click.option("--streams", default=16, show_default=True)
@click.option("--requests", "count", default=32, show_default=True)
@click.option("--tokens", default=60, show_default=True)
@click.option("--step-ms", default=4.0, show_default=True)
@click.option("--dp", default=1, show_default=True)
@click.option("--seed", default=0, show_default=True)
def failpoints(times: int, kinds: str, points: str, action: str, in_parade: bool, **options: int) -> None:
    """Kill actors at every failpoint. Exits 1 unless every answer is exact."""
    campaign = Campaign(**options)
    chosen = [point for point in POINTS if point.name.startswith(points)]
    whose = kinds.split(",")
    cases = [parade(whose, chosen, times)] if in_parade else list(sweep(whose, chosen, action, times))
    click.echo("| case | deaths | answers | bad | left |\n|---|---|---|---|---|")
    results = []
    for case in cases:
        result = campaign.run(case)
        results.append(result)
        click.echo(
            f"| {result.title} | {result.deaths} | {len(result.receipts)} | {len(result.verdicts)} "
            f"| {len(result.leaks)} |"
        )
    for result in results:
        for problem in result.problems()[:10]:
            click.echo(f"- {result.title}: {problem}")
    sys.exit(not all(result.clean for result in results))
