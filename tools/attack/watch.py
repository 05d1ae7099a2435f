"""What must not change while a company is attacked: processes, descriptors, memory, free slots."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import trio

from tools.chaos import http, soak, traces
from tools.chaos.company import Company, holdings
from tools.chaos.soak import Sample

SETTLE_SECONDS = 60.0
SAMPLES = 40
ENOUGH = 20_000
"""Cases from which on growth is told from caches that fill."""
MEMORY = 96 << 20
"""Bytes that all actors together may take in addition in a shorter run."""
CHOICES = 128
"""Choices of one request."""


@dataclasses.dataclass
class Watch:
    """A look before, samples meanwhile, and what is found afterwards. max_open: of the company."""

    company: Company
    max_open: int
    samples: list[Sample] = dataclasses.field(default_factory=list)
    _pids: dict[str, int] = dataclasses.field(default_factory=dict)
    _descriptors: dict[str, int] = dataclasses.field(default_factory=dict)

    async def begin(self) -> None:
        """The company is at rest and has served already."""
        self._pids = _pids(await self.company.status())
        self._descriptors = {name: traces.descriptors(pid) for name, pid in self._pids.items()}
        self.sample(0)

    def sample(self, done: int) -> None:
        """Look at memory, after so many cases: of the actors themselves, as their understudies come later."""
        look = soak.look(self.company.process.pid, done)
        memory = 0
        for pid in self._pids.values():
            with contextlib.suppress(OSError):  # that one is gone is told at the end
                memory += traces.private(pid)
        self.samples.append(dataclasses.replace(look, actors=memory))

    async def end(self) -> list[str]:
        """Everything that is not as before."""
        found: list[str] = []
        with trio.move_on_after(SETTLE_SECONDS):
            while found := await self._held() or await self._slots_taken():
                await trio.sleep(0.1)
        pids = _pids(await self.company.status())
        restarted = [name for name, pid in self._pids.items() if pids.get(name) != pid]
        if restarted:
            return [*found, *(f"{name} was restarted" for name in restarted)]
        self.sample(self.samples[-1].requests + 1)
        return found + self._grown()

    async def _held(self) -> list[str]:
        """Requests, pages and descriptors that are still held."""
        status = await self.company.status()
        found = [held for actor in status["actors"] for held in holdings(actor)]
        for name, pid in _pids(status).items():
            before = self._descriptors.get(name, 0)
            if pid == self._pids.get(name) and (now := traces.descriptors(pid)) > before + 2:
                found.append(f"{name} has {now} descriptors, {before} before")
        return found

    async def _slots_taken(self) -> list[str]:
        """Ledger slots that cannot all be taken at once: those of clients that left come back one after the
        other, lost ones never."""
        body = {"model": self.company.model, "prompt": "a", "n": CHOICES, "max_tokens": 8, "ignore_eos": True}
        refused: list[str] = []

        async def take() -> None:
            try:
                async with http.request(
                    self.company.host, self.company.port, "POST", "/v1/completions", body
                ) as answer:
                    await answer.whole()
            except (http.Refusal, http.Broken) as error:
                refused.append(f"not every ledger slot is free: {error}")

        async with trio.open_nursery() as nursery:
            for _ in range(self.max_open // CHOICES):
                nursery.start_soon(take)
        return refused

    def _grown(self) -> list[str]:
        if self.samples[-1].requests < ENOUGH:
            grown = self.samples[-1].actors - self.samples[0].actors
            return [f"the actors grew by {grown >> 20} MiB"] if grown > MEMORY else []
        return [f"{name} grew by {g:.1%}" for name, g in self.growths().items() if g > soak.GROWTH]

    def growths(self) -> dict[str, float]:
        """Relative growth of what should be flat, after the warm-up."""
        names = ("root", "actors", "shared", "descriptors")
        return {name: soak.growth([float(getattr(s, name)) for s in self.samples]) for name in names}


def _pids(status: dict[str, Any]) -> dict[str, int]:
    return {actor["name"]: actor["pid"] for actor in status["actors"]}
