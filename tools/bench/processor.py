"""What processes took of the processor: time, time spent waiting for a core, context switches.

From `/proc/PID/task/*`, all threads of a process together. The kernel counts nanoseconds (`schedstat`), so
the figures hold on a machine that is shared with other work, where seconds do not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Use:
    """seconds: on a core. waited: seconds ready to run while others had the cores. yielded: times that a
    thread went to sleep by itself; preempted: times that it was made to give way."""

    seconds: float = 0.0
    waited: float = 0.0
    yielded: int = 0
    preempted: int = 0

    def __add__(self, other: Use) -> Use:
        return Use(
            self.seconds + other.seconds,
            self.waited + other.waited,
            self.yielded + other.yielded,
            self.preempted + other.preempted,
        )

    def __sub__(self, other: Use) -> Use:
        return Use(
            self.seconds - other.seconds,
            self.waited - other.waited,
            self.yielded - other.yielded,
            self.preempted - other.preempted,
        )


def use_of(pid: int) -> Use:
    """What process `pid` has taken so far; nothing when it is gone."""
    total = Use()
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += _task(task)
    return total


def _task(task: pathlib.Path) -> Use:
    ran, waited, _ = map(int, (task / "schedstat").read_text().split())
    status = dict(
        line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line
    )
    switches = int(status["voluntary_ctxt_switches"]), int(status["nonvoluntary_ctxt_switches"])
    return Use(ran / 1e9, waited / 1e9, *switches)


def machine_busy() -> float:
    """Seconds that all cores together have been busy since the machine started."""
    line = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0]
    user, nice, system, _, _, *interrupts = map(int, line.split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


class Meter:
    """Measures named processes from now on, and what everybody else takes meanwhile."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._began, self._busy = time.monotonic(), machine_busy()
        self._before = {name: use_of(pid) for name, pid in self._pids.items()}

    def others(self, *, known: float) -> float:
        """The share (0..1) of all cores that was taken by none of these processes, nor by whoever took the
        `known` seconds: beside more than a few hundredths, rates say little."""
        mine = sum(use.seconds for use in self.read().values()) + known
        spare = (machine_busy() - self._busy - mine) / (time.monotonic() - self._began)
        return max(0.0, spare / (os.cpu_count() or 1))

    def read(self) -> dict[str, Use]:
        """What each has taken since."""
        return {name: use_of(pid) - self._before[name] for name, pid in self._pids.items()}
