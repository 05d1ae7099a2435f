"""What the supervisor can tell of its company without asking anybody: black boxes, notices, metrics.

The latest notices are kept with running numbers, so that whoever watches can ask for those that it has not
seen, and waits for the next.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import trio

from protocols.config import Config
from runtime import notices
from runtime.blackbox import SAMPLE_ONE, BlackBox, Setting
from runtime.board import Row
from runtime.logs import taped
from runtime.metrics import Collector, Past
from runtime.tree import Child
from runtime.wiring import Wiring

KEPT = 256
"""Notices that are kept."""
NAME = "supervisor"


class Sight:
    """Eyes on one company. boxes: of the actors, and the supervisor's own under NAME."""

    def __init__(self, config: Config, wiring: Wiring, children: dict[str, Child], own: BlackBox) -> None:
        rows = {name: wiring.row(name) for name in children}
        self.boxes = {**wiring.boxes, NAME: own}
        self._past = Past()
        self._collector = Collector(
            config, children, rows, wiring.boxes, self._past, lambda: wiring.standing.adapters
        )
        self._notices: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._number = 0
        self._news = trio.lowlevel.ParkingLot()
        self._log = taped(NAME, own) if config.log_format != "json" else None
        self._recorders = 0
        self.sample(config.trace_sample)

    def metrics(self) -> str:
        """Prometheus's text."""
        return self._collector.text()

    def families(self) -> list[dict[str, Any]]:
        """The same as values."""
        return self._collector.documents()

    # Notices.

    def hear(self, notice: notices.Notice) -> None:
        """Keep a notice."""
        self._past.hear(notice, time.monotonic())
        self._number += 1
        kind, text = type(notice).__name__.lower(), notices.describe(notice)
        actor = getattr(notice, "name", "")
        self._notices.append(
            {"number": self._number, "time": time.time(), "kind": kind, "actor": actor, "text": text}
        )
        if self._log is not None:
            notices.log(notice, self._log)
        self._news.unpark_all()

    def since(self, number: int) -> list[dict[str, Any]]:
        """The notices after `number`, as far as they are kept."""
        return [each for each in self._notices if each["number"] > number]

    async def news(self) -> None:
        """Wait for the next notice."""
        await self._news.park()

    def bury(self, name: str, row: Row) -> None:
        """Keep the counters of a row that is about to be cleared for the actor's next incarnation."""
        self._past.bury(name, row)

    # Tracing and logs.

    def sample(self, share: float) -> None:
        """Trace this share of the requests that begin from now on."""
        for box in self.boxes.values():
            box.set(Setting.SAMPLE, round(share * SAMPLE_ONE))

    def record(self, more: int) -> None:
        """Count those who want everything traced: one has come (1) or gone (-1)."""
        self._recorders += more
        for box in self.boxes.values():
            box.set(Setting.RECORDING, self._recorders)

    def level(self, name: str, number: int) -> None:
        """From which level on an actor logs; 0: as the options say."""
        self.boxes[name].set(Setting.LEVEL, number)

    def lines(self, name: str, since: int) -> tuple[list[str], int]:
        """The lines of an actor's log that its tape holds behind position `since`, and where they end."""
        begin, data = self.boxes[name].log.read(since)
        size = len(data)
        if begin > since:
            data = data.partition(b"\n")[2]
        lines = [line.decode(errors="replace") for line in data.split(b"\n")]
        return [line for line in lines if line.startswith("{")], begin + size
