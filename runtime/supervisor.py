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
import os
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
from protocols.errors import StartError
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
    Replace,
    Say,
    Spawn,
    Stop,
    Terminate,
    Tick,
)
from runtime.launch import Process, ending, oom_kills
from runtime.lifecycle import Act, Lifecycle
from runtime.report import Failed, Progress, Ready, Reports
from runtime.sight import NAME, Sight
from runtime.tree import Budget, Child, Company, Group, Strategy, check, leaves
from runtime.understudy import Understudies
from runtime.vault import load_keys
from runtime.watch import Watch
from runtime.wiring import Wiring

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


@dataclasses.dataclass
class _Running:
    """One incarnation and what is known of it. pipe: read end of its reports. oom_kills: those of the
    machine before its start. ready_at: its work tick when it became ready. fenced: this supervisor has
    sent it SIGKILL."""

    child: Child
    process: Process
    pipe: int
    watch: Watch
    oom_kills: int
    reports: Reports = dataclasses.field(default_factory=Reports)
    ready_at: int | None = None
    failed: Failed | None = None
    fenced: bool = False


class Supervisor:
    """A company while it runs."""

    def __init__(
        self, company: Company, wiring: Wiring, announce: notices.Announce, log: Any, box: BlackBox
    ) -> None:
        self._company = company
        self._wiring = wiring
        self._announce = announce
        self._log = log
        self._children = {child.name: child for child in leaves(company.root)}
        self._rows = {name: wiring.row(name) for name in self._children}
        self._life = Lifecycle(company.root, company.config.drain_seconds)
        self._running: dict[str, _Running] = {}
        self._sight = Sight(company.config, wiring, self._children, box)
        self._understudies = Understudies(company.root, wiring)
        self._nursery: trio.Nursery
        self._changed = trio.Event()
        self._begun = time.monotonic()
        self._code = 1

    async def run(self, door: socket.socket) -> int:
        """Run the company to its end; returns the exit code. `door`: the listening admin socket."""
        try:
            with trio.open_signal_receiver(*_signals()) as signals:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._obey, signals)
                    self._nursery.start_soon(self._keep_time)
                    self._nursery.start_soon(self._look_after)
                    self._nursery.start_soon(admin.Server(door, verbs.table(self), self._log).run)
                    self._begun = time.monotonic()
                    self._carry_out(self._life.begin(self._begun))
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
                row = self._rows[name]
                reason = running.watch.look(
                    now,
                    tick=row[Column.LOOP_TICK],
                    busy_since=row[Column.BUSY_SINCE_NS],
                    ready=running.ready_at is not None,
                )
                if reason is not None and not running.fenced:
                    self._feed(Hangs(name, reason))

    async def _attend(self, running: _Running) -> None:
        """See one incarnation through to its death."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen_to, running)
            await trio.lowlevel.wait_readable(running.process.pidfd)
            nursery.cancel_scope.cancel()
        self._bury(running)

    async def _listen_to(self, running: _Running) -> None:
        while self._read_reports(running):
            await trio.lowlevel.wait_readable(running.pipe)

    def _read_reports(self, running: _Running) -> bool:
        """Take in all reports that are there; False when no more can come."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(running.pipe, 65536):
                for report in running.reports.feed(data):
                    self._take(running, report)
            return False
        return True

    def _take(self, running: _Running, report: Ready | Progress | Failed) -> None:
        match report:
            case Ready(work_tick):
                if running.ready_at is None:
                    running.ready_at = work_tick
                    self._feed(IsReady(running.child.name))
            case Progress(text):
                self._say(notices.Progress(running.child.name, text))
            case Failed():
                running.failed = report
            case _:
                assert_never(report)

    def _bury(self, running: _Running) -> None:
        """Reap a dead process, take its last words and let the lifecycle decide."""
        name, row = running.child.name, self._rows[running.child.name]
        self._read_reports(running)
        code = running.process.reap()
        row.add(Column.EXCUSED, self._from_outside(running, code))
        os.close(running.pipe)
        del self._running[name]
        row[Column.PID], row[Column.STATE] = 0, State.DOWN
        failed = running.failed or Failed("")
        refusal = failed.sentence if failed.exit_code is not None else ""
        self._feed(
            Died(
                name,
                ending(code, failed.sentence),
                progress=self._got_on(running, code),
                itself=code >= 0,
                refusal=refusal,
                exit_code=failed.exit_code or 1,
            )
        )

    def _got_on(self, running: _Running, code: int) -> bool:
        """Whether a death speaks for itself: work was done since it was ready, or somebody else killed it."""
        if self._from_outside(running, code):
            return True
        done = self._rows[running.child.name][Column.WORK_TICK]
        return running.ready_at is not None and done > running.ready_at

    def _from_outside(self, running: _Running, code: int) -> bool:
        """Whether somebody else killed it, and not the kernel for want of memory."""
        return code == -signal.SIGKILL and not running.fenced and oom_kills() == running.oom_kills

    async def _stillborn(self, name: str, error: OSError) -> None:
        self._feed(Died(name, f"could not be started ({error.strerror})", progress=False))

    # Deeds.

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Spawn(name, incarnation):
                    self._spawn(self._children[name], incarnation)
                case Terminate(name):
                    self._running[name].process.send(signal.SIGTERM)
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

    def _spawn(self, child: Child, incarnation: int) -> None:
        self._reset_row(child.name, incarnation)
        try:
            taken = self._understudies.take(child, incarnation, time.monotonic())
            process, reader = taken or self._launch(child, incarnation)
        except OSError as error:
            self._nursery.start_soon(self._stillborn, child.name, error)
            return
        self._rows[child.name][Column.PID] = process.pid
        watch = Watch(child.hang_seconds, child.busy_seconds)
        running = _Running(child, process, reader, watch, oom_kills())
        self._running[child.name] = running
        self._nursery.start_soon(self._attend, running)

    def _launch(self, child: Child, incarnation: int) -> tuple[Process, int]:
        """Start an interpreter: its process and the read end of its reports."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return Process(self._wiring.spec(child, incarnation, writer), child.env), reader
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)

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
            self._running[name].fenced = True
            self._running[name].process.kill()

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
        for running in self._running.values():
            running.process.kill()
        for running in self._running.values():
            poll = select.poll()
            poll.register(running.process.pidfd, select.POLLIN)
            if poll.poll(LAST_WAIT_MS):
                running.process.reap()

    # Administrators' wishes (verbs.Root).

    def status(self) -> admin.Reply:
        """The company and all its actors, from the board."""
        config = self._company.config
        actors = [
            status.describe_actor(child, self._life, self._rows[name])
            for name, child in self._children.items()
        ]
        return {
            "state": status.company_state(self._life.act, actors),
            "name": config.name,
            "model": config.model.name,
            "url": status.url(config),
            "host": config.host,
            "port": config.port,
            "pid": os.getpid(),
            "uptime_seconds": time.monotonic() - self._begun,
            "actors": actors,
        }

    def tree(self) -> admin.Reply:
        """The supervision tree with the actors' states."""
        return {"tree": status.describe_member(self._company.root, self._life, self._rows)}

    def stop(self, reason: str, *, at_once: bool) -> admin.Reply:
        """End the company: its open work first, or at once."""
        if at_once or self._life.act in {Act.STARTING, Act.SERVING}:
            self._feed(Stop(reason, 1))
        if at_once and self._life.act is Act.STOPPING:
            self._feed(Stop(reason, 1))
        return {"state": self._life.act.value}

    def keys(self) -> admin.Reply:
        """The API keys by name, their limits, and what each has used; never a digest."""
        _, keyring, _ = self._wiring.vault.read()
        return {
            "keys": [
                {
                    "name": key.name,
                    "admin": key.admin,
                    **msgspec.to_builtins(key.limits),
                    **self._wiring.vault.used(key.name),
                }
                for key in keyring.keys
            ]
        }

    def reload_keys(self) -> admin.Reply:
        """Read the key file again; where it is wrong, the keys stay as they are."""
        try:
            self._wiring.vault.publish(load_keys(self._company.config))
        except StartError as error:
            raise admin.VerbError("failed", f"{error} The keys are as they were.") from error
        return self.keys()

    def replace(self, name: str, *, gently: bool) -> admin.Reply:
        """Replace an actor: SIGTERM first if `gently`, else SIGKILL."""
        if name not in self._children:
            known = ", ".join(self._children)
            raise admin.VerbError("not_found", f"there is no actor {name!r}; there are {known}.")
        if name not in self._running or self._life.act not in {Act.STARTING, Act.SERVING}:
            raise admin.VerbError("conflict", f"{name} is {self._life.phase(name).value}.")
        running = self._running[name]
        reply = {"name": name, "pid": running.process.pid, "incarnation": self._life.incarnation(name)}
        self._feed(Replace(name, gently))
        return reply


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
    """Tell a notice to whoever reads stderr."""
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
        company = dataclasses.replace(company, config=config)
        wiring = stack.enter_context(contextlib.closing(Wiring(company, listener)))
        return trio.run(Supervisor(company, wiring, announce, log, box).run, door)
