"""Total kills: the whole tree, or the supervisor alone, dies of SIGKILL under load; nothing may remain."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Sequence

import click
import trio

from runtime import admin
from tools.chaos import load, traces
from tools.chaos.company import Company, company
from tools.chaos.http import Broken, request

SECONDS = 5.0
"""Time for everything to be gone."""
_MARK = "TROUPE_CHAOS_MARK"


@dataclasses.dataclass(frozen=True)
class Death:
    """One total kill. victim: "tree" or "supervisor". seconds: until nothing was left. left: what was, after
    SECONDS."""

    victim: str
    seconds: float
    left: tuple[str, ...]


class Campaign:
    """Starts companies of one name and one port after each other, and kills each under load."""

    def __init__(self, streams: int, seed: int) -> None:
        self._streams = streams
        self._rng = random.Random(seed)
        self._mark = uuid.uuid4().hex
        self._name = f"chaos-{self._mark[:8]}"
        self._port = 0

    def kill(self, victim: str) -> Death:
        """Start, load, kill, look. That the next company starts under the same name and port shows that
        neither was left in use."""
        names = traces.shared_names()
        options = ["--executor", "hash", "--step-ms", "2"]
        environment = {_MARK: self._mark}
        with company(options, name=self._name, port=self._port, environment=environment) as subject:
            trio.run(self._under_load, subject, victim)
            return self._look(victim, names, subject)

    async def _under_load(self, subject: Company, victim: str) -> None:
        await subject.ready()
        self._port = subject.port
        async with trio.open_nursery() as nursery:
            for _, body in load.asks(subject.model, self._streams, 400, seed=1):
                nursery.start_soon(_listen, subject, body)
            await trio.sleep(self._rng.uniform(0.0, 1.0))
            self._strike(subject, victim)
            subject.process.wait()
            nursery.cancel_scope.cancel()

    def _strike(self, subject: Company, victim: str) -> None:
        """The processes of a tree die in any order."""
        pids = [subject.process.pid]
        if victim == "tree":
            pids += traces.children(subject.process.pid)
            self._rng.shuffle(pids)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _look(self, victim: str, names: set[str], subject: Company) -> Death:
        began = time.monotonic()
        while left := self._left(names, subject):
            if time.monotonic() - began > SECONDS:
                break
            time.sleep(0.01)
        return Death(victim, time.monotonic() - began, tuple(left))

    def _left(self, names: set[str], subject: Company) -> list[str]:
        left = [f"process {pid}" for pid in traces.marked(self._mark)]
        left += [f"/dev/shm/{name}" for name in traces.shared_names() - names if "torch" not in name]
        with contextlib.suppress(admin.Unreachable):
            admin.ask(subject.address, {"verb": "status"})
            left.append("the admin socket")
        return left


async def _listen(subject: Company, body: dict[str, object]) -> None:
    with contextlib.suppress(Broken):
        path = "/v1/chat/completions" if "messages" in body else "/v1/responses"
        async with request(subject.host, subject.port, "POST", path, body) as answer:
            await answer.whole()


def lines(deaths: Sequence[Death]) -> list[str]:
    """The report as Markdown."""
    table = ["| victim | kills | something left | gone in, max s |", "|---|---|---|---|"]
    for victim in dict.fromkeys(death.victim for death in deaths):
        mine = [death for death in deaths if death.victim == victim]
        bad = sum(bool(death.left) for death in mine)
        table.append(f"| {victim} | {len(mine)} | {bad} | {max(death.seconds for death in mine):.2f} |")
    return [*table, *(f"- {death.victim}: left {', '.join(death.left)}" for death in deaths if death.left)]


@click.command()
@click.option("--trees", default=20, show_default=True, help="Times that everything is killed at once.")
@click.option("--supervisors", default=10, show_default=True, help="Times that only the supervisor is.")
@click.option("--streams", default=8, show_default=True)
@click.option("--seed", default=0, show_default=True)
def total(trees: int, supervisors: int, streams: int, seed: int) -> None:
    """Kill whole companies. Exits 1 if anything is left, or a next company does not start."""
    campaign = Campaign(streams, seed)
    victims = ["tree"] * trees + ["supervisor"] * supervisors
    deaths = [campaign.kill(victim) for victim in victims]
    click.echo("\n".join(lines(deaths)))
    sys.exit(any(death.left for death in deaths))
