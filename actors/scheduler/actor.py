"""The scheduler actor: moves mail between the rings, the ledger, the board and the core, and decides nothing.

After a death, whichever incarnation this is: the ledger tells which choices of this replica are open and how
far they came, the executor's row on the board tells its sizes, and the first plan carries a new epoch, at
which the executor forgets everything. Endings that may never have been sent are sent again; rows carry
positions, so receiving one twice does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import trio

from actors.post import Post
from actors.scheduler.adapters import AdapterSlots
from actors.scheduler.commands import Command, Emit, Launch, Load, Note, Settle
from actors.scheduler.core import Core, Mail
from actors.scheduler.instruments import Instruments
from actors.scheduler.records import Records
from actors.scheduler.sequence import Sequence as Live
from actors.scheduler.speculation import Speculation
from actors.sizes import portions
from protocols.board import Column, State
from protocols.errors import VerbError, several
from protocols.messages import Abort, SchedulerMail, TokenRow, Tokens
from protocols.orders import (
    Adjust,
    Answer,
    Continue,
    CountUsers,
    Done,
    Ended,
    EndRequests,
    Flush,
    Flushed,
    Held,
    Inquire,
    Inquired,
    Open,
    Order,
    Pause,
    Paused,
    Release,
    Renew,
    Restore,
    SetAdapters,
    Users,
)
from protocols.plan import ExecutorReady
from protocols.standing import Memory, PauseMode
from runtime.actor import Context
from runtime.cores import give_way
from runtime.failpoints import reach

accepts = SchedulerMail

TELL_EVERY = 10_000
"""Guessed tokens between two log lines about them."""

_LAST_DISPATCH = Column.LAST_DISPATCH
_SHOWN = (
    Column.TOKENS_HELD,
    Column.RUNNING,
    Column.WAITING,
    Column.PAGES_TOTAL,
    Column.PAGES_FREE,
    Column.PAGES_CACHED,
    Column.PAGES_OWNED,
    Column.REQUESTS_TOTAL,
    Column.PROMPT_TOKENS_TOTAL,
    Column.CACHE_QUERY_TOKENS_TOTAL,
    Column.CACHED_TOKENS_TOTAL,
    Column.GENERATED_TOKENS_TOTAL,
    Column.PREEMPTIONS_TOTAL,
    Column.STEPS_TOTAL,
    Column.STEP_US_TOTAL,
    Column.DRAFTED_TOTAL,
    Column.ACCEPTED_TOTAL,
    Column.PAGES_AVAILABLE,
)
"""The board's columns for the fields of a Load, in their order; its last field has none."""


async def run(context: Context[SchedulerMail]) -> None:
    """Serve until asked to stop. Nothing needs draining: what is open stays in the ledger."""
    give_way()
    scheduler = Scheduler(context)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.post.deliver)
        mail = scheduler.recovered()
        reach("scheduler.recovered")
        scheduler.turn(mail)
        context.ready()
        nursery.start_soon(scheduler.serve)
        nursery.start_soon(context.obey, scheduler.obey)
        await context.stopping.wait()
        nursery.cancel_scope.cancel()


class Scheduler:
    """Carries out what the core decides."""

    def __init__(self, context: Context[SchedulerMail]) -> None:
        config = context.config
        self.post = Post(context.outbox)
        self._context = context
        self._executor = f"executor.{context.index}"
        self._told = 0
        self._instruments = Instruments(context.box)
        self._records = Records(context, self._instruments)
        self._core = Core(
            depth=config.depth,
            chunk_size=config.chunk_size,
            policy=config.policy,
            radix=config.radix,
            speculation=Speculation.of(config),
            burst_us=int(config.burst_ms * 1000),
            epoch=context.incarnation << 32,
            standing=context.standing,
            adapters=AdapterSlots(config.max_loras, context.standing.adapters),
        )
        self._turned = trio.lowlevel.ParkingLot()

    async def serve(self) -> None:
        """Mail in, commands out, for ever."""
        while True:
            mails = await self._context.inbox.receive()
            self.turn([mail.message for mail in mails if self._records.is_news(mail.message)])

    def turn(self, mail: Sequence[Mail]) -> None:
        """One turn of the core, and another one while carrying out its commands brings news (that a request
        is gone)."""
        while True:
            start = time.monotonic_ns()
            for message in mail:
                self._instruments.heard(message)
            commands = self._core.turn(mail)
            self._context.vitals.add(Column.TURN_NS_TOTAL, time.monotonic_ns() - start)
            self._instruments.turned(start, len(mail))
            mail = [Abort(rid) for rid in self._carry_out(commands)]
            if not mail:
                break
        self._turned.unpark_all()

    async def obey(self, order: Order) -> Answer:
        """Carry out an order of the supervisor's, which is mail for the core like any other."""
        vitals = self._context.vitals
        match order:
            case Pause(mode):
                self.turn([order])
                while self._core.flying and mode is not PauseMode.WAIT:
                    await self._turned.park()
                return Paused(vitals[Column.RUNNING], vitals[Column.WAITING])
            case Continue():
                self.turn([order])
                return Done()
            case SetAdapters():
                self.turn([order])
                return Done()
            case CountUsers(adapters):
                return Users(tuple(map(self._core.users, adapters)))
            case Flush() | Renew():
                if isinstance(order, Renew) and self._core.flying:
                    raise VerbError("conflict", "the weights change in the midst of a step.")
                before = vitals[Column.PAGES_CACHED]
                self.turn([order])
                kept = vitals[Column.PAGES_CACHED]
                return Flushed(before - kept, kept)
            case Release(tags):
                self._check_idle(tags)
                self.turn([order])
                return Held()
            case Restore():
                self.turn([order])
                return Held()
            case Adjust():
                self.turn([order])
                return Done()
            case Inquire():
                return Inquired(tuple(map(self._described, self._core.open())))
            case EndRequests(rids):
                known = {sequence.rid for sequence in self._core.open()}
                self.turn([order])
                return Ended(tuple(sorted(known & set(rids) if rids else known)))
            case _:
                raise VerbError("failed", "this is no order for a scheduler.")

    def _check_idle(self, tags: Sequence[Memory]) -> None:
        """Raises VerbError while anybody runs, whose memory would be given back."""
        running = self._core.running
        if running and (Memory.KV_CACHE in tags or self._core.flying):
            raise VerbError(
                "conflict",
                f"memory is held by {several(running, 'request')}: pause generation first, and not in place.",
            )

    def recovered(self) -> list[Mail]:
        """Mail that tells a new core where the ones before it stood."""
        resumes, endings = self._records.found()
        for origin, last in endings:
            self._send_rows(origin, [last])
        mail: list[Mail] = list(resumes)
        row = self._context.board.row(self._context.rows[self._executor])
        # Sizes stand there before it is READY; a predecessor may have read the mail that comes in between.
        if row[Column.STATE] in (State.STARTING, State.READY) and row[Column.SLOTS]:
            ready = ExecutorReady(
                incarnation=row[Column.INCARNATION],
                pages=row[Column.PAGES_TOTAL],
                page_size=row[Column.PAGE_SIZE],
                slots=row[Column.SLOTS],
                vocab_size=self._context.config.model.vocab_size,
                excused=row[Column.EXCUSED],
            )
            mail.append(ready)
        return mail

    def _carry_out(self, commands: Iterable[Command]) -> list[int]:
        """Carry out commands; returns the ids of requests that turned out to be gone."""
        gone: list[int] = []
        for command in commands:
            match command:
                case Launch(plan):
                    self.post.send(self._executor, self._instruments.launched(plan))
                case Note(rid, made):
                    self._records.note(rid, made)
                case Emit(origin, rows):
                    kept = self._records.commit(rows, gone)
                    reach("scheduler.committed")
                    self._send_rows(origin, kept)
                    self._context.worked()
                case Settle(rid, finish):
                    self._instruments.ended(rid)
                    self._records.settle(rid, finish)
                case Load():
                    self._show(command)
        return gone

    def _described(self, sequence: Live) -> Open:
        return Open(
            rid=sequence.rid,
            trace_id=self._records.requests.trace(sequence.rid).get("trace_id", ""),
            choice=sequence.choice,
            running=sequence.slot >= 0,
            prompt_tokens=sequence.prompt_len,
            cached_tokens=max(sequence.cached, 0),
            output_tokens=len(sequence.output),
            max_tokens=sequence.allowance,
            priority=sequence.priority,
            arrived_ns=sequence.arrived_ns,
        )

    def _send_rows(self, origin: int, rows: Sequence[TokenRow]) -> None:
        """Send rows in messages of an eighth of a ring at most, so that each fits and several can wait in the
        ring."""
        for portion in portions(rows, self._context.config.ring_bytes // 8):
            self.post.send(f"tokenizer.{origin}", Tokens(portion))

    def _show(self, load: Load) -> None:
        """Show the load on the board. TOKENS_HELD is written before LAST_DISPATCH: a balancer that reads in
        between counts a request twice for a moment, but never misses it."""
        vitals = self._context.vitals
        for column, value in zip(_SHOWN, load, strict=False):
            vitals[column] = value
        vitals[_LAST_DISPATCH] = max(load.last_dispatch, vitals[_LAST_DISPATCH])
        if load.drafted - self._told >= TELL_EVERY:
            self._told = load.drafted
            rate = round(load.accepted / load.drafted, 3)
            self._context.log.info("speculation", drafted=load.drafted, accepted=load.accepted, rate=rate)
