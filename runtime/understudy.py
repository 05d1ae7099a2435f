"""Spare processes that have done everything but begin: most of a restart is importing modules.

An understudy has imported the modules of the actors it can stand in for and inherited their descriptors,
and sleeps on a pipe. When one of them must be replaced it is sent the Spec and is ready in milliseconds;
a fresh understudy is started when the restart is over. Without one (it died, or two actors died at
once) an actor is started from nothing, and is ready later: an understudy is never needed.
"""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass

import msgspec

from runtime.launch import Launched, Process, launch
from runtime.tree import Child, Group, leaves, troupes
from runtime.wiring import Part, Spec, Wiring

PAUSE = 0.1
"""Seconds between the use of an understudy and the start of the next, and between two starts: a company
that has just begun, or just lost somebody, has other work for the processor."""
PAUSE_AFTER_DEATH = 10.0
"""Seconds before an understudy that died unused is replaced."""


@dataclass
class _Spare:
    """A waiting process. report, line: numbers of their other ends in the process; cue: write end of the pipe
    that it waits for."""

    launched: Launched
    report: int
    line: int
    cue: int

    @property
    def process(self) -> Process:
        return self.launched.process

    def close(self) -> None:
        os.close(self.launched.reports)
        os.close(self.cue)
        self.launched.line.close()

    def cast(self, spec: Spec) -> bool:
        """Send it its part; False where that fails, or the process is stopped and would not act."""
        data = msgspec.msgpack.encode(spec)
        try:
            return (
                not self.process.is_dead()
                and not self._is_stopped()
                and os.write(self.cue, data) == len(data)
            )
        except OSError:
            return False

    def _is_stopped(self) -> bool:
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] in {"T", "t"}


class Understudies:
    """One spare for each name in `Child.understudy`, from the moment the company serves. Those of later
    stages come before, and become the first incarnations of their actors."""

    def __init__(self, root: Group, wiring: Wiring) -> None:
        self._troupes = troupes(root)
        self._first = min(child.stage for child in leaves(root))
        self._wiring = wiring
        self._spares: dict[str, _Spare] = {}
        self._due: dict[str, float] = {}
        self._paused_until = 0.0

    def hurry(self, now: float) -> None:
        """Start those of later stages, whose actors are to find everything imported when their turn comes."""
        for name, children in self._troupes.items():
            if all(child.stage > self._first for child in children):
                self._start(name, now)

    def open(self, now: float) -> None:
        """Begin to keep understudies, at `now` (seconds)."""
        self._due = {name: now + PAUSE for name in self._troupes if name not in self._spares}

    def look(self, now: float) -> None:
        """Reap the dead, and start one that is due."""
        for name, spare in tuple(self._spares.items()):
            if spare.process.is_dead():
                self._dismiss(name)
                self._due[name] = now + PAUSE_AFTER_DEATH
        due = [name for name in self._due if self._due[name] <= now]
        if due and self._paused_until <= now:
            self._paused_until = now + PAUSE
            del self._due[due[0]]
            self._start(due[0], now)

    def take(self, child: Child, incarnation: int, now: float) -> Launched | None:
        """Make an understudy, which is the caller's from now on, the next incarnation of `child`. None where
        there is none."""
        name = child.understudy
        spare = self._spares.get(name)
        if spare is None:
            return None
        self._due[name] = now + PAUSE
        if not spare.cast(self._wiring.spec(child, incarnation, spare.report, spare.line)):
            self._dismiss(name)
            return None
        os.close(spare.cue)
        del self._spares[name]
        return spare.launched

    def close(self) -> None:
        """Kill all that wait, and start no more."""
        self._due.clear()
        for name in tuple(self._spares):
            self._dismiss(name)

    def _start(self, name: str, now: float) -> None:
        try:
            self._spares[name] = self._launch(name)
        except OSError:  # no process or descriptor is left: an understudy is not worth the company
            self._due[name] = now + PAUSE_AFTER_DEATH

    def _launch(self, name: str) -> _Spare:
        children = self._troupes[name]
        waiting, cue = os.pipe2(os.O_CLOEXEC)
        ends = (-1, -1)

        def part(report: int, line: int) -> Part:
            nonlocal ends
            ends = report, line
            return self._wiring.understudy(name, children, report, line, waiting)

        try:
            os.set_blocking(cue, False)
            return _Spare(launch(part, children[0].env), *ends, cue)
        except OSError:
            os.close(cue)
            raise
        finally:
            os.close(waiting)

    def _dismiss(self, name: str) -> None:
        spare = self._spares.pop(name)
        spare.process.kill()
        spare.process.reap()
        spare.close()
