"""The nemesis: kills and stops actors of a running company, and keeps a log of what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
from collections.abc import Sequence
from typing import Any

import trio

from runtime import admin

STOP_SECONDS = (0.1, 12.0)
"""Some of them are forgiven, some end in a SIGKILL."""
LOOK_SECONDS = 0.2
DOUBLE_SECONDS = 0.4
"""The second kill of a pair comes within this time: while the first victim is being replaced."""


@dataclasses.dataclass
class Fault:
    """One act: "kill", "restart" (an orderly one), or "stop" for `seconds` with a SIGCONT afterwards. at:
    Trio's clock.

    died: when a stopped process was dead, None while it lives. outlived: whether it was still alive when its
    successor was on the board, which must never be: two incarnations could write to the same words.
    """

    at: float
    actor: str
    kind: str
    seconds: float = 0.0
    died: float | None = None
    outlived: bool = False


class Nemesis:
    """Strikes at actors whose names start with one of `victims`.

    weights: relative frequency of "kill", "restart", "stop" and "double" (a second kill while the
    first victim is being replaced). interval: mean seconds between strikes. stops: shortest and longest
    stop in seconds.
    """

    def __init__(
        self,
        address: str,
        victims: Sequence[str],
        weights: dict[str, float],
        interval: float,
        seed: int,
        stops: tuple[float, float] = STOP_SECONDS,
    ) -> None:
        self.log: list[Fault] = []
        self._address = address
        self._victims = tuple(victims)
        self._weights = weights
        self._interval = interval
        self._stops = stops
        self._rng = random.Random(seed)

    async def run(self, strikes: int) -> None:
        """Strike `strikes` times; over when the last stopped process has been let go."""
        async with trio.open_nursery() as nursery:
            while len(self.log) < strikes:
                await trio.sleep(self._rng.uniform(0.5, 1.5) * self._interval)
                match self._rng.choices(list(self._weights), list(self._weights.values()))[0]:
                    case "stop":
                        await self._stop_one(nursery)
                    case "double":
                        await self.kill_one()
                        await trio.sleep(self._rng.uniform(0.0, DOUBLE_SECONDS))
                        await self.kill_one()
                    case "restart":
                        await self._restart_one()
                    case _:
                        await self.kill_one()

    async def _restart_one(self) -> None:
        """Have the supervisor replace one of the actors that are ready in an orderly way, if any is."""
        actors = await self._alive()
        if actors:
            name = self._rng.choice(actors)["name"]
            self.log.append(Fault(trio.current_time(), name, "restart"))
            await admin.call(self._address, {"verb": "actor.restart", "name": name})

    async def kill_one(self) -> None:
        """SIGKILL one of the actors that are ready, if any is."""
        actors = await self._alive()
        if actors:
            self._kill(self._rng.choice(actors))

    async def _stop_one(self, nursery: trio.Nursery) -> None:
        """SIGSTOP one of the actors that are ready, if any is."""
        actors = await self._alive()
        if not actors:
            return
        actor, seconds = self._rng.choice(actors), self._rng.uniform(*self._stops)
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(actor["pid"])
            try:
                signal.pidfd_send_signal(handle, signal.SIGSTOP)
            except ProcessLookupError:
                os.close(handle)
                return
            self.log.append(Fault(trio.current_time(), actor["name"], "stop", seconds))
            nursery.start_soon(self._release, handle, self.log[-1], actor)

    async def _alive(self) -> list[dict[str, Any]]:
        status = await admin.call(self._address, {"verb": "status"})
        return [
            actor
            for actor in status["actors"]
            if actor["pid"] and actor["state"] == "ready" and actor["name"].startswith(self._victims)
        ]

    def _kill(self, actor: dict[str, Any]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(actor["pid"], signal.SIGKILL)
            self.log.append(Fault(trio.current_time(), actor["name"], "kill"))

    async def _release(self, handle: int, fault: Fault, actor: dict[str, Any]) -> None:
        """A SIGCONT that comes late: often for a process that has been replaced."""
        try:
            with trio.move_on_after(fault.seconds):
                await self._watch(handle, fault, actor)
                await trio.sleep_forever()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
        finally:
            os.close(handle)

    async def _watch(self, handle: int, fault: Fault, actor: dict[str, Any]) -> None:
        """Until a stopped process is dead: whether its successor comes before that."""
        while fault.died is None:
            replaced = await self._replaced(actor)
            with trio.move_on_after(LOOK_SECONDS):
                await trio.lowlevel.wait_readable(handle)
                fault.died = trio.current_time()
            fault.outlived = fault.outlived or (replaced and fault.died is None)

    async def _replaced(self, actor: dict[str, Any]) -> bool:
        """Whether a later incarnation is on the board."""
        status = await admin.call(self._address, {"verb": "status"})
        now = next(each for each in status["actors"] if each["name"] == actor["name"])
        return bool(now["pid"]) and now["incarnation"] != actor["incarnation"]
