"""The scheduler actor: moves mail between the rings, the ledger, the board and the core, and decides nothing.

After a death, whichever incarnation this is: the ledger tells which choices of this replica are open and
how far they came, the executor's row on the board tells its sizes, and the first plan carries a new epoch, at
which the executor forgets everything. What was finished but perhaps never told is told again; rows
carry positions, so hearing it twice does no harm.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import trio

from actors.post import Post
from actors.scheduler.adapters import AdapterSlots
from actors.scheduler.commands import Command, Emit, Launch, Load, Note, Resume, Settle
from actors.scheduler.core import Core, Mail
from actors.scheduler.instruments import Instruments
from actors.scheduler.sequence import Sequence as Live
from actors.scheduler.speculation import Speculation
from actors.sizes import portions
from protocols.board import Column, State
from protocols.errors import ErrorBody, PeerError, VerbError, several
from protocols.messages import Abort, SchedulerMail, Submit, TokenRow, Tokens
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
    Memory,
    Open,
    Order,
    Pause,
    Paused,
    PauseMode,
    Release,
    Renew,
    Restore,
    SetAdapters,
    Users,
)
from protocols.plan import ExecutorReady
from protocols.request import Finish
from protocols.stored import decode_stored, ending, pack_row
from protocols.weights import Made
from runtime.actor import Context
from runtime.failpoints import reach
from runtime.ledger import StaleRequest
from runtime.tracing import trace_fields

accepts = SchedulerMail


TELL_EVERY = 10_000
"""Guessed tokens from one log line about them to the next."""

_NONE = Finish.NONE
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
"""Where the fields of a Load go, in their order, but for the last one."""
_LEDGER_FULL = ErrorBody(
    503,
    "The server has no memory left for this answer.",
    "overloaded_error",
    "server_overloaded",
    retry_after=1,
)


async def run(context: Context[SchedulerMail]) -> None:
    """Serve until asked to stop. Nothing needs draining: what is open stays in the ledger."""
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
            self.turn([mail.message for mail in mails if self._is_news(mail.message)])

    def turn(self, mail: Sequence[Mail]) -> None:
        """One turn, and more while carrying it out brings news (a request that has gone)."""
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
        """Carry out an order of the supervisor's: it is mail for the core like any other."""
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
        """Raises VerbError where memory is in use."""
        running = self._core.running
        if running and (Memory.KV_CACHE in tags or self._core.flying):
            raise VerbError(
                "conflict",
                f"memory is held by {several(running, 'request')}: pause generation first, and not in place.",
            )

    def recovered(self) -> list[Mail]:
        """Mail that tells a new core where the ones before it stood."""
        mail: list[Mail] = list(self._open_requests())
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

    def _open_requests(self) -> Iterable[Resume]:
        """What the ledger holds of this replica, oldest first; finished ones are told again meanwhile."""
        found: list[Resume] = []
        for rid in self._context.ledger.open_rids():
            try:
                found += self._recover(rid)
            except StaleRequest:
                continue
        return sorted(found, key=lambda resume: resume.submit.arrived_ns)

    def _recover(self, rid: int) -> Iterator[Resume]:
        ledger = self._context.ledger
        submit = self._stored(rid)
        if submit is None:
            return
        tokens = tuple(ledger.committed(rid).tolist())
        finish = ledger.finish(rid)
        if finish is Finish.NONE:
            yield Resume(submit, tokens, ledger.weights(rid))
        else:
            row = ending(submit, tokens, finish, ledger.cached(rid), ledger.extras(rid))
            self._send_rows(submit.origin, [row] if row else [])

    def _stored(self, rid: int) -> Submit | None:
        """The request as this replica was sent it, None when it was not."""
        ledger = self._context.ledger
        record = ledger.request(rid)
        number = 0
        if self._context.config.dp > 1:
            replica, number = ledger.assignment(rid) or (-1, 0)
            if replica != self._context.index:
                return None
        try:
            return msgspec.structs.replace(decode_stored(record).submit, dispatch=number) if record else None
        except PeerError as error:
            self._context.log.error("ledger_record_bad", rid=rid, error=str(error))
            return None

    def _is_news(self, message: SchedulerMail) -> bool:
        """Not a Submit that an earlier incarnation, or its sender's, has brought to its end already."""
        if not isinstance(message, Submit):
            return True
        try:
            return self._context.ledger.finish(message.rid) is _NONE
        except StaleRequest:
            return False

    def _carry_out(self, commands: Iterable[Command]) -> list[int]:
        """Do it; returns the ids of requests that turned out to be gone."""
        gone: list[int] = []
        for command in commands:
            match command:
                case Launch(plan):
                    self.post.send(self._executor, self._instruments.launched(plan))
                case Note(rid, made):
                    self._note(rid, made)
                case Emit(origin, rows):
                    kept = self._commit(rows, gone)
                    reach("scheduler.committed")
                    self._send_rows(origin, kept)
                    self._context.worked()
                case Settle(rid, finish):
                    self._instruments.ended(rid)
                    self._settle(rid, finish)
                case Load():
                    self._show(command)
        return gone

    def _note(self, rid: int, made: Made) -> None:
        with contextlib.suppress(StaleRequest):
            self._context.ledger.note_weights(rid, made)

    def _commit(self, rows: Sequence[TokenRow], gone: list[int]) -> Sequence[TokenRow]:
        """Write rows to the ledger; returns those that may be sent. The rows of nearly all choices bring
        tokens and nothing else: these go together, the others one by one."""
        special = {row.rid for row in rows if not _is_plain(row)}
        if special:
            self._instruments.finished(rows)
        plain = [row for row in rows if row.rid not in special] if special else rows
        owners = [row for row in plain for _ in row.tokens]
        tokens = [token for row in plain for token in row.tokens]
        left = self._context.ledger.commit_each([row.rid for row in owners], tokens)
        if not left and not special:
            return rows
        lacking = Counter(id(owners[index]) for index in left)
        lacking.update({id(row): len(row.tokens) for row in rows if row.rid in special})
        kept = (self._commit_one(row, lacking[id(row)], gone) if id(row) in lacking else row for row in rows)
        return [row for row in kept if row is not None]

    def _commit_one(self, row: TokenRow, lacking: int, gone: list[int]) -> TokenRow | None:
        """What may be sent of a row of which the last `lacking` tokens are to be written; None where its
        request is gone."""
        extras = pack_row(row) if row.logprobs or row.prompt_output else b""
        tokens = row.tokens[len(row.tokens) - lacking :]
        try:
            self._context.ledger.commit(row.rid, tokens, extras, row.finish, row.cached)
        except StaleRequest:
            gone.append(row.rid)
            return None
        except (OSError, ValueError) as error:
            if row.rid in gone:
                return None
            trace = self._trace(row.rid)
            self._context.log.error("commit_failed", rid=row.rid, error=str(error), **trace)
            gone.append(row.rid)
            self._settle(row.rid, Finish.ERROR)
            return TokenRow(row.rid, row.start, (), Finish.ERROR, error=_LEDGER_FULL)
        return row

    def _described(self, sequence: Live) -> Open:
        return Open(
            rid=sequence.rid,
            trace_id=self._trace(sequence.rid).get("trace_id", ""),
            choice=sequence.choice,
            running=sequence.slot >= 0,
            prompt_tokens=sequence.prompt_len,
            cached_tokens=max(sequence.cached, 0),
            output_tokens=len(sequence.output),
            max_tokens=sequence.allowance,
            priority=sequence.priority,
            arrived_ns=sequence.arrived_ns,
        )

    def _trace(self, rid: int) -> dict[str, str]:
        """What a log line says of the trace of an open choice."""
        try:
            submit = self._stored(rid)
        except StaleRequest:
            submit = None
        return trace_fields(submit.trace) if submit is not None else {}

    def _settle(self, rid: int, finish: Finish) -> None:
        try:
            if self._context.ledger.finish(rid) is Finish.NONE:
                self._context.ledger.commit(rid, (), finish=finish)
        except StaleRequest:
            return

    def _send_rows(self, origin: int, rows: Sequence[TokenRow]) -> None:
        """In messages of an eighth of a ring at most: each fits, and some wait together."""
        for portion in portions(rows, self._context.config.ring_bytes // 8):
            self.post.send(f"tokenizer.{origin}", Tokens(portion))

    def _show(self, load: Load) -> None:
        """TOKENS_HELD goes before LAST_DISPATCH: a balancer that reads in between counts a request twice
        for a moment, and never not at all."""
        vitals = self._context.vitals
        for column, value in zip(_SHOWN, load, strict=False):
            vitals[column] = value
        vitals[_LAST_DISPATCH] = max(load.last_dispatch, vitals[_LAST_DISPATCH])
        if load.drafted - self._told >= TELL_EVERY:
            self._told = load.drafted
            rate = round(load.accepted / load.drafted, 3)
            self._context.log.info("speculation", drafted=load.drafted, accepted=load.accepted, rate=rate)


def _is_plain(row: TokenRow) -> bool:
    """Whether it is tokens and nothing else."""
    return row.finish is _NONE and bool(row.tokens) and not row.logprobs and row.prompt_output is None
