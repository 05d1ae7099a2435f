"""One incarnation of an actor, as its supervisor knows it: its process, its reports, its line, its watch."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal

from protocols.board import Column
from runtime.board import Row
from runtime.launch import Launched, oom_kills
from runtime.orders import Line
from runtime.report import Failed, Report, Reports
from runtime.tree import Child
from runtime.watch import Watch


@dataclasses.dataclass
class Incarnation:
    """oom_kills: those of the machine before its start. ready_at: its work tick when it became ready. fenced:
    this supervisor has sent it SIGKILL."""

    child: Child
    launched: Launched
    line: Line
    watch: Watch
    oom_kills: int
    reports: Reports = dataclasses.field(default_factory=Reports)
    ready_at: int | None = None
    failed: Failed | None = None
    fenced: bool = False

    @classmethod
    def of(cls, child: Child, launched: Launched) -> Incarnation:
        """The incarnation that begins with a process just started."""
        watch = Watch(child.hang_seconds, child.busy_seconds)
        return cls(child, launched, Line(child.name, launched.line), watch, oom_kills())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.launched.process.pid

    def heard(self) -> tuple[list[Report], bool]:
        """All reports that are there, and whether more can come."""
        found: list[Report] = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.launched.reports, 65536):
                found += self.reports.feed(data)
            return found, False
        return found, True

    def hangs(self, now: float, row: Row) -> str | None:
        """Why it is to be killed, if it is."""
        reason = self.watch.look(
            now,
            tick=row[Column.LOOP_TICK],
            busy_since=row[Column.BUSY_SINCE_NS],
            ready=self.ready_at is not None,
        )
        return None if self.fenced else reason

    def kill(self) -> None:
        """SIGKILL it."""
        self.fenced = True
        self.launched.process.kill()

    def bury(self) -> int:
        """Reap it and release everything that belonged to it; its exit code, or minus the signal."""
        code = self.launched.process.reap()
        os.close(self.launched.reports)
        self.line.close()
        return code

    def killed_from_outside(self, code: int) -> bool:
        """Whether somebody else killed it, and not the kernel for want of memory."""
        return code == -signal.SIGKILL and not self.fenced and oom_kills() == self.oom_kills

    def got_on(self, code: int, row: Row) -> bool:
        """Whether its death counts as one with progress: it got work done since it was ready, or somebody
        else killed it."""
        if self.killed_from_outside(code):
            return True
        return self.ready_at is not None and row[Column.WORK_TICK] > self.ready_at
