"""What an actor sees: one context with its mail, its row on the board, the ledger, and the request to
stop."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import trio

from protocols.board import Column, State
from protocols.config import Config
from protocols.orders import Answer, Freeze, Frozen, Order, Stack, Stacked
from protocols.standing import Standing
from runtime import garbage
from runtime.blackbox import BlackBox
from runtime.board import Board, Row
from runtime.channel import Inbox, Outbox
from runtime.ledger import Ledger
from runtime.orders import Handler
from runtime.report import Progress, Ready, Report
from runtime.stacks import stacks
from runtime.vault import Vault

T = TypeVar("T")

_WORK_TICK, _BUSY_SINCE_NS = Column.WORK_TICK, Column.BUSY_SINCE_NS

HEARTBEAT = 0.4
"""Seconds between two ticks of an idle actor."""


def _nobody(_report: Report) -> None:
    """Discards the reports of an actor that nobody supervises."""


@dataclass
class Context(Generic[T]):
    """An actor's world. `T` is the union of the messages that it accepts.

    listener, vault: the company's listening socket and its keys, None unless the actor serves clients.
    stopping: set once the actor is asked to finish its open work and return. rows: row numbers of all actors
    on the board. box: where it notes what others may want to see. log: structlog logger that knows the actor
    and its incarnation. standing: what holds from its start on, until an order changes it. line: of the
    supervisor's orders, None where nobody gives any.
    """

    name: str
    index: int
    incarnation: int
    config: Config
    inbox: Inbox[T]
    outbox: Outbox
    vitals: Row
    board: Board
    rows: dict[str, int]
    ledger: Ledger
    log: Any
    listener: socket.socket | None = None
    vault: Vault | None = None
    box: BlackBox = field(default_factory=BlackBox.private)
    standing: Standing = field(default_factory=Standing)
    line: socket.socket | None = None
    stopping: trio.Event = field(default_factory=trio.Event)
    report: Callable[[Report], None] = _nobody
    _works: list[int] = field(default_factory=list, init=False)
    _handler: Handler | None = field(default=None, init=False)
    _obedient: trio.Event = field(default_factory=trio.Event, init=False)

    def ready(self) -> None:
        """Everything is loaded: from now on the actor serves."""
        self.vitals[Column.STATE] = State.READY
        self.report(Ready(self.vitals[Column.WORK_TICK]))

    def progress(self, text: str) -> None:
        """Tell the people who wait for the start how far it has come."""
        self.report(Progress(text))

    def tick(self) -> None:
        """Count a turn of the event loop."""
        self.vitals.add(Column.LOOP_TICK)

    def worked(self) -> None:
        """Count a piece of work: an incarnation that got work done may die without counting against
        its group's budget."""
        self.vitals.add(_WORK_TICK)

    async def obey(self, handler: Handler) -> None:
        """Carry out the supervisor's orders, one after another, for ever. Run it beside the actor's work: its
        `handler` runs in the same loop, so between two pieces of work that do not await."""
        self._handler = handler
        self._obedient.set()
        await trio.sleep_forever()

    async def carry_out(self, order: Order) -> Answer:
        """Carry out an order: those that mean the same for every actor here, the others by the actor's
        handler, once there is one."""
        match order:
            case Freeze():
                return Frozen(garbage.settle())
            case Stack():
                return Stacked(stacks())
            case _:
                await self._obedient.wait()
                assert self._handler is not None
                return await self._handler(order)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Around work that blocks the event loop, so that it is not taken for a hang, or that a thread does,
        so that its hanging is seen. It may last as long as the child's `busy_seconds`. Blocks may be
        nested or overlap: the row tells the beginning of the oldest."""
        since = time.monotonic_ns()
        self._works.append(since)
        self.vitals[_BUSY_SINCE_NS] = self._works[0]
        try:
            yield
        finally:
            self._works.remove(since)
            self.vitals[_BUSY_SINCE_NS] = self._works[0] if self._works else 0

    def drain(self) -> None:
        """Ask the actor to finish and return."""
        self.vitals[Column.STATE] = State.DRAINING
        self.stopping.set()


async def heartbeat(context: Context[Any]) -> None:
    """Show on the board, for ever, that the event loop turns, and how much mail comes, goes and waits."""
    while True:
        context.tick()
        context.vitals[Column.MESSAGES_IN] = context.inbox.received
        context.vitals[Column.MESSAGES_OUT] = context.outbox.sent
        context.vitals[Column.INBOX_BYTES] = context.inbox.depth()
        context.vitals[Column.MAIL_DROPPED_TOTAL] = context.inbox.dropped
        await trio.sleep(HEARTBEAT)
