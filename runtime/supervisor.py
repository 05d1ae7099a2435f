"""The root of a company: starts, watches, fences and replaces its actors, and ends with nothing left.

All decisions are `runtime.lifecycle`'s; this module brings it the facts (a pidfd that became readable, a
report, a row of the board that stands still, a signal, an administrator's wish) and carries out what
it says. It imports nothing heavy and maps no ring, so it has little to die of; if it is killed, the
kernel kills its actors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, assert_never

import msgspec
import trio

from protocols.board import SUPERVISOR_COLUMNS, Column, State
from runtime import admin, kin, logs, notices, status, verbs
from runtime.blackbox import BlackBox
from runtime.door import admin_door, client_door
from runtime.events import (
    Command,
    Died,
    End,
    Event,
    Hangs,
    IsReady,
    Kill,
    Say,
    Spawn,
    Stop,
    Terminate,
    Tick,
)
from runtime.guarding import guard
from runtime.holdings import Holdings
from runtime.incarnation import Incarnation
from runtime.keeping import keep
from runtime.launch import Launched, ending, launch
from runtime.lifecycle import Act, Lifecycle
from runtime.report import Failed, Progress, Ready, Report
from runtime.root import Root
from runtime.sight import NAME, Sight
from runtime.tree import Budget, Child, Company, Group, Strategy, check, leaves
from runtime.understudy import Understudies
from runtime.wiring import Part, Wiring

__all__ = ["Budget", "Child", "Company", "Group", "Strategy", "Supervisor", "supervise"]

LOOK_PERIOD = 0.25
"""Seconds between two looks at the board for actors that hang."""
DESCRIPTORS = 65536
"""Descriptors that a process of the company may have, where the system allows so many."""
LAST_WAIT_MS = 1000
"""How long a supervisor that itself has failed waits for each process it killed."""
ECHO = 1.0
"""Seconds within which a second SIGTERM or SIGHUP is the first one's echo: sent to a process group it
reaches this process from the kernel and again through the `make` that started it. A second SIGINT is a
person's."""
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
"""Exit codes of a company that is told a second time to stop, and therefore ends at once."""


class Supervisor:
    """A company while it runs."""

    def __init__(
        self,
        company: Company,
        wiring: Wiring,
        holdings: Holdings,
        announce: notices.Announce,
        log: Any,
        box: BlackBox,
    ) -> None:
        self._company = company
        self._wiring = wiring
        self._announce = announce
        self._log = log
        self._children = {child.name: child for child in leaves(company.root)}
        self._rows = {name: wiring.row(name) for name in self._children}
        self._life = Lifecycle(company.root, company.config.drain_seconds)
        self._running: dict[str, Incarnation] = {}
        self._sight = Sight(company.config, wiring, self._children, box)
        self._root = Root(company, wiring, self._life, self._running, self._feed, self._sight, log, holdings)
        self._understudies = Understudies(company.root, wiring)
        self._nursery: trio.Nursery
        self._changed = trio.Event()
        self._code = 1

    async def run(self, door: socket.socket) -> int:
        """Run the company to its end; returns the exit code. `door`: the listening admin socket."""
        try:
            with trio.open_signal_receiver(*_signals()) as signals:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._obey, signals)
                    self._nursery.start_soon(guard, self._root.holdings, self._log)
                    self._nursery.start_soon(self._keep_time)
                    self._nursery.start_soon(self._look_after)
                    self._nursery.start_soon(self._serve_administrators, door)
                    self._carry_out(self._life.begin(time.monotonic()))
                    self._understudies.hurry(time.monotonic())
        finally:
            self._leave_nobody()
        return self._code

    # Facts.

    def _feed(self, event: Event) -> None:
        self._carry_out(self._life.turn(event, time.monotonic()))

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        last, heard = 0, -math.inf
        async for number in signals:
            now = trio.current_time()
            echo = number == last != signal.SIGINT and now - heard < ECHO
            last, heard = number, now
            if echo:
                continue
            name = signal.Signals(number).name
            self._feed(Stop(f"received {name}", EXIT_CODES[signal.Signals(number)]))

    async def _keep_time(self) -> None:
        while True:
            self._changed = trio.Event()
            left = self._life.deadline() - time.monotonic()
            with trio.move_on_after(max(0.0, left)):
                await self._changed.wait()
            if self._life.deadline() <= time.monotonic():
                self._feed(Tick())

    async def _look_after(self) -> None:
        while True:
            await trio.sleep(LOOK_PERIOD)
            now = time.monotonic()
            if self._life.act is Act.SERVING:
                self._understudies.look(now)
            for name, running in tuple(self._running.items()):
                reason = running.hangs(now, self._rows[name])
                if reason is not None:
                    self._feed(Hangs(name, reason))

    async def _serve_administrators(self, door: socket.socket) -> None:
        table = verbs.table(self._root, self._company.verbs)
        await admin.Server(door, table, self._log).run()

    async def _attend(self, running: Incarnation) -> None:
        """See one incarnation through to its death."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen_to, running)
            nursery.start_soon(running.line.run)
            await trio.lowlevel.wait_readable(running.launched.process.pidfd)
            nursery.cancel_scope.cancel()
        self._bury(running)

    async def _listen_to(self, running: Incarnation) -> None:
        while self._read_reports(running):
            await trio.lowlevel.wait_readable(running.launched.reports)

    def _read_reports(self, running: Incarnation) -> bool:
        """Take in all reports that are there; False when no more can come."""
        reports, more = running.heard()
        for report in reports:
            self._take(running, report)
        return more

    def _take(self, running: Incarnation, report: Report) -> None:
        match report:
            case Ready(work_tick):
                if running.ready_at is None:
                    running.ready_at = work_tick
                    self._feed(IsReady(running.child.name))
            case Progress(text):
                self._root.said[running.child.name] = text
                self._say(notices.Progress(running.child.name, text))
            case Failed():
                running.failed = report
            case _:
                assert_never(report)

    def _bury(self, running: Incarnation) -> None:
        """Reap a dead process, read its last reports, and let the lifecycle decide."""
        name, row = running.child.name, self._rows[running.child.name]
        self._read_reports(running)
        code = running.bury()
        row.add(Column.EXCUSED, running.killed_from_outside(code))
        del self._running[name]
        row[Column.PID], row[Column.STATE] = 0, State.DOWN
        failed = running.failed or Failed("")
        self._feed(
            Died(
                name,
                ending(code, failed.sentence),
                progress=running.got_on(code, row),
                itself=code >= 0,
                refusal=failed.sentence if failed.exit_code is not None else "",
                exit_code=failed.exit_code or 1,
            )
        )

    async def _stillborn(self, name: str, error: OSError) -> None:
        self._feed(Died(name, f"could not be started ({error.strerror})", progress=False))

    # Deeds.

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Spawn(name, incarnation):
                    self._spawn(self._children[name], incarnation)
                case Terminate(name):
                    self._running[name].launched.process.send(signal.SIGTERM)
                case Kill(name):
                    self._kill(name)
                case Say(notice):
                    self._say(notice)
                case End(code):
                    self._code = code
                    self._nursery.cancel_scope.cancel()
                case _:
                    assert_never(command)
        self._changed.set()
        self._root.changed()

    def _spawn(self, child: Child, incarnation: int) -> None:
        self._reset_row(child.name, incarnation)
        try:
            launched = self._understudies.take(child, incarnation, time.monotonic())
            launched = launched or self._launch(child, incarnation)
        except OSError as error:
            self._nursery.start_soon(self._stillborn, child.name, error)
            return
        self._rows[child.name][Column.PID] = launched.process.pid
        running = self._running[child.name] = Incarnation.of(child, launched)
        self._nursery.start_soon(self._attend, running)

    def _launch(self, child: Child, incarnation: int) -> Launched:
        """Start an interpreter."""

        def part(report: int, line: int) -> Part:
            return self._wiring.spec(child, incarnation, report, line)

        return launch(part, child.env)

    def _reset_row(self, name: str, incarnation: int) -> None:
        """Make the row a new incarnation's. Nobody else writes to it: the previous one was reaped."""
        row = self._rows[name]
        self._sight.bury(name, row)
        for column in Column:
            if column >= SUPERVISOR_COLUMNS:
                row[column] = 0
        row[Column.INCARNATION] = incarnation
        row[Column.RESTARTS] = incarnation - 1
        row[Column.STARTED_NS] = time.monotonic_ns()
        row[Column.STATE] = State.STARTING

    def _kill(self, name: str) -> None:
        if name in self._running:
            self._running[name].kill()

    def _say(self, notice: notices.Notice) -> None:
        if isinstance(notice, notices.Serving):
            self._understudies.open(time.monotonic())
            notice = self._whereabouts(notice)
        self._sight.hear(notice)
        if self._company.config.log_format == "json":
            notices.log(notice, self._log)
        else:
            self._announce(notice)

    def _whereabouts(self, notice: notices.Serving) -> notices.Serving:
        """The notice, and where clients find what is served; there is no port where nothing listens."""
        config = self._company.config
        if not config.port:
            return notice
        return dataclasses.replace(notice, model=config.model.name, url=status.url(config))

    def _leave_nobody(self) -> None:
        """Kill the understudies, and actors if there are any, as when this supervisor itself has failed."""
        self._understudies.close()
        left = [running.launched.process for running in self._running.values()]
        for process in left:
            process.kill()
        for process in left:
            poll = select.poll()
            poll.register(process.pidfd, select.POLLIN)
            if poll.poll(LAST_WAIT_MS):
                process.reap()


def _signals() -> list[signal.Signals]:
    """Signals that stop the company; SIGHUP too, unless `nohup` has told us to outlive the terminal."""
    hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangup else [])]


def _allow_many_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def write_notice(notice: notices.Notice) -> None:
    """Write a notice to stderr."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{notices.describe(notice)}\n")
        sys.stderr.flush()


def supervise(company: Company, *, announce: notices.Announce = write_notice) -> int:
    """Run a company until it ends; the exit code for the process. `announce` is told what happens.

    Raises StartError, before anything was started, where an address is taken or memory is missing. A
    company that fails later says why in a `Failed` notice and returns 1 (or the code of a child's
    StartError). The first SIGINT, SIGTERM or SIGHUP ends it in order, with 0; a second one at once.
    """
    check(company)
    _allow_many_descriptors()
    kin.adopt_orphans()
    config = company.config
    box = BlackBox.private()
    log = logs.configure(config.log_level, config.log_format, actor=NAME, box=box)
    with contextlib.ExitStack() as stack:
        door = stack.enter_context(admin_door(admin.address(config.name, config.socket)))
        listener = None
        if any(child.listens for child in leaves(company.root)):
            listener = stack.enter_context(client_door(config))
            config = msgspec.structs.replace(config, port=listener.getsockname()[1])
        holdings = Holdings()
        company = dataclasses.replace(company, config=keep(holdings, config))
        wiring = stack.enter_context(contextlib.closing(Wiring(company, listener)))
        return trio.run(Supervisor(company, wiring, holdings, announce, log, box).run, door)
