"""How a fresh interpreter becomes an actor: `python -m runtime.process FD NAME`.

FD is an in-memory file that holds the process's part: a Spec, or an Understudy, which imports what its
actors need and then waits for a Spec. Everything else is inherited under the numbers named there.
A process ends in one of three ways: its actor returns (exit code 0), its actor fails (a traceback in the
log, or one sentence for a StartError; the reason goes to the supervisor; exit code 1), or a signal.
The kernel kills it when its supervisor dies, so no company outlives its root.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import msgspec
import trio

from protocols.board import Column
from protocols.errors import StartError
from runtime import failpoints, garbage, logs
from runtime.actor import Context, heartbeat
from runtime.blackbox import BlackBox
from runtime.board import Board
from runtime.channel import Outbox, inbox_for
from runtime.doorbell import Doorbell
from runtime.kin import be_called, follow
from runtime.ledger import Ledger
from runtime.orders import obey
from runtime.report import Failed, Ready, Report, Reporter
from runtime.ring import Ring
from runtime.vault import Vault
from runtime.wiring import Edge, Part, Spec, Understudy

Run = Callable[[Context[Any]], Awaitable[None]]


def read_part(fd: int) -> Part:
    """Read and close the file that holds the part."""
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        part: Part = msgspec.msgpack.decode(file.read(), type=Part)
        return part


def wait_for_part(part: Understudy) -> Spec:
    """Import what the parts need (and call the `preload(config)` of modules that have one), then wait for
    one of them; let go of whatever belongs to the others."""
    for name in part.modules:
        module = importlib.import_module(name)
        if hasattr(module, "preload"):
            module.preload(part.config)
    be_called(part.name)
    with os.fdopen(part.cue, "rb") as cue:
        spec = msgspec.msgpack.decode(cue.read(), type=Spec)
    for fd in set(part.inherited).difference(spec.descriptors()):
        os.close(fd)
    return spec


def _lanes(edge: Edge) -> tuple[Ring, Ring]:
    return Ring.attach(edge.control), Ring.attach(edge.data)


def attach(spec: Spec, accepts: Any, log: Any, box: BlackBox) -> Context[Any]:
    """Map what was inherited. `accepts`: union of the messages that the actor takes."""
    for fd in spec.descriptors():
        os.set_inheritable(fd, False)
    board = Board.attach(spec.board)
    bells = {
        edge.peer: Doorbell.attach(edge.doorbell, board.word(spec.rows[edge.peer], Column.AWAKE))
        for edge in spec.outbox
    }
    return Context(
        name=spec.name,
        index=spec.index,
        incarnation=spec.incarnation,
        config=spec.config,
        inbox=inbox_for(
            accepts,
            Doorbell.attach(spec.doorbell, board.word(spec.row, Column.AWAKE)),
            {edge.peer: _lanes(edge) for edge in spec.inbox},
        ),
        outbox=Outbox(
            spec.incarnation,
            {edge.peer: (*_lanes(edge), bells[edge.peer]) for edge in spec.outbox},
        ),
        vitals=board.row(spec.row),
        board=board,
        rows=spec.rows,
        ledger=Ledger.attach(spec.ledger, spec.layout, spec.config.frontends),
        log=log,
        listener=socket.socket(fileno=spec.listener) if spec.listener >= 0 else None,
        vault=Vault.attach(spec.vault, spec.config.frontends) if spec.vault >= 0 else None,
        box=box,
        standing=spec.standing,
        line=socket.socket(fileno=spec.line) if spec.line >= 0 else None,
        report=_settling(Reporter(spec.report)),
    )


def _settling(reporter: Reporter) -> Callable[[Report], None]:
    """A reporter that also calls `garbage.settle` once the actor is ready."""

    def report(report: Report) -> None:
        reporter(report)
        if isinstance(report, Ready):
            garbage.settle()

    return report


async def act(context: Context[Any], run: Run) -> None:
    """Run the actor until it returns, with a heartbeat beside it; SIGTERM asks it to stop."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heartbeat, context)
            nursery.start_soon(_drain_on, signals, context)
            if context.line is not None:
                nursery.start_soon(obey, context.line, context.carry_out)
            await run(context)
            nursery.cancel_scope.cancel()


async def _drain_on(signals: Any, context: Context[Any]) -> None:
    async for _ in signals:
        context.drain()


def _cause(error: BaseException) -> BaseException:
    """The exception to blame in a nest of exception groups: a StartError if there is one, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [_cause(each) for each in error.exceptions]
    return next((each for each in causes if isinstance(each, StartError)), causes[0])


def perform(spec: Spec, log: Any, box: BlackBox, report: Reporter) -> int:
    """Run the actor that the part describes; returns the process's exit code."""
    try:
        name, _, function = spec.entry.partition(":")
        module = importlib.import_module(name)
        context = attach(spec, module.accepts, log, box)
        trio.run(act, context, getattr(module, function))
    except BaseException as error:
        cause = _cause(error)
        if isinstance(cause, StartError):
            report(Failed(str(cause), cause.exit_code))
        else:
            log.error("actor crashed", exc_info=error)
            report(Failed(f"{type(cause).__name__}: {cause}"))
        return 1
    return 0


def main(arguments: list[str]) -> NoReturn:
    """Entry of the process."""
    part = read_part(int(arguments[0]))
    follow(part.supervisor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = part if isinstance(part, Spec) else wait_for_part(part)
    be_called(spec.name)
    failpoints.begin(spec.name, spec.incarnation)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    box = BlackBox.attach(spec.box, spec.incarnation)
    log = logs.configure(
        spec.config.log_level, spec.config.log_format, actor=spec.name, incarnation=spec.incarnation, box=box
    )
    code = perform(spec, log, box, Reporter(spec.report))
    # Shared memory has no name and needs no clean-up; the teardown of large libraries is slow and may crash.
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
