"""The frontend's side of the engine: requests go down as mail, and their text comes back as rows.

    start ─► claim slots ─► Generate ─► … ─► Deltas ─► rows, cut where they overlap ─► sink
                                         └─► Refused ─► sink.fail

Nothing here waits for a client: `deliver` hands every row to its sink, then lets each sink that got
some write once (`pump`). Slots are claimed and given back by `slots`.

A generation that another process started can be adopted: its tokenizer then sends every row again.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, assert_never

import trio

from actors.frontend.accounts import Account
from actors.frontend.adapters import Adapters
from actors.frontend.generation import Choice, Generation, Sink
from actors.frontend.instruments import Instruments
from actors.frontend.jobs import Job, mails_of
from actors.frontend.ledger_slots import LedgerSlots
from actors.frontend.questions import Questions
from protocols.config import Config
from protocols.errors import ErrorBody, UserError, overloaded
from protocols.messages import (
    Abort,
    Decoded,
    Deltas,
    Encoded,
    FrontendMail,
    Generate,
    Refused,
    Replay,
    TextRow,
)
from protocols.request import Finish, slot_of
from runtime.blackbox import BlackBox
from runtime.channel import Mail, Outbox
from runtime.ledger import Ledger
from runtime.tracing import trace_fields

EXPIRE_EVERY = 0.1
"""Seconds between looks at requests that wait for their first token."""


class Engine:
    """All generations of one frontend."""

    def __init__(
        self,
        index: int,
        config: Config,
        ledger: Ledger,
        outbox: Outbox,
        log: Any,
        box: BlackBox | None = None,
    ) -> None:
        self._index = index
        self.config = config
        self._ledger = ledger
        self._outbox = outbox
        self._log = log
        self.adapters = Adapters(config.model.name)
        self._choices: dict[int, Choice] = {}
        self.instruments = Instruments(box or BlackBox.private())
        self.questions = Questions(index, config.tokenizers, outbox)
        self.slots = LedgerSlots(index, ledger, self._abort_nowait, config.orphan_seconds)
        self._handing_over = trio.Event()
        self._account: Account | None = None

    def charged_to(self, account: Account) -> Engine:
        """A view of the engine for the requests of one key, which count against that key's limits."""
        view = copy.copy(self)
        view._account = account
        return view

    def users(self, adapters: Sequence[int]) -> tuple[int, ...]:
        """How many open choices go through each adapter, by id."""
        found = Counter(choice.generation.mails[0].adapter for choice in self._choices.values())
        return tuple(found[id] for id in adapters)

    @property
    def open(self) -> int:
        """Choices that have not ended."""
        return len(self._choices)

    async def start(self, job: Job, sink: Sink, rids: tuple[int, ...] = ()) -> Generation:
        """Send a job down, under `rids` if they are claimed already; parks while the tokenizer's ring is
        full. Raises UserError: 400 when it can never fit, 429 or 503 when there is no room now."""
        rids = rids or self.slots.claim(len(job.prompts) * job.n)
        mails = mails_of(job, rids, self._index, self._salted(job.salt))
        generation = Generation(mails, sink, account=self._account, names=job.names)
        for choice in generation.choices:
            self._choices[choice.rid] = choice
        unsent = list(generation.mails)
        try:
            generation.enter()
            while unsent:
                self.instruments.began(unsent[0])
                await self._outbox.send(self._tokenizer(unsent[0].rids[0]), unsent[0])
                del unsent[0]
        except ValueError:
            raise UserError("The request is too large.", status=413, code="request_too_large") from None
        finally:
            if unsent:
                self._forget([rid for mail in unsent for rid in mail.rids])
                self.abort(generation)
        return generation

    def abort(self, generation: Generation) -> None:
        """End a generation that nobody wants any more; idempotent, and without effect on one that is done."""
        for choice in generation.choices:
            if self._choices.pop(choice.rid, None) is not None:
                self.slots.leave(choice.rid, aborted=True)
                self.instruments.ended(choice, _ABORT if generation.error is None else _ERROR)
        generation.end()

    def adopt(self, stored: Generate, sink: Sink) -> Generation:
        """Follow a generation that another process started: its rows come from the start, once `ask_again`
        was called."""
        generation = Generation((stored,), sink, adopted=True)
        for choice in generation.choices:
            self._choices[choice.rid] = choice
        return generation

    async def ask_again(self, generation: Generation) -> None:
        """Have all rows of an adopted generation sent here; parks while the tokenizer's ring is full."""
        for choice in generation.choices:
            await self._outbox.send(self._tokenizer(choice.rid), Replay(choice.rid, self._index))

    def discard(self, generation: Generation) -> None:
        """Take in no more of an adopted generation."""
        for choice in generation.choices:
            self._choices.pop(choice.rid, None)

    def hand_over(self) -> None:
        """From now on do not abort what can be resumed: this process ends, and the next one adopts it."""
        self._handing_over.set()

    def keeps(self, generation: Generation) -> bool:
        """Whether a generation continues when this process ends."""
        return (
            self._handing_over.is_set() and bool(generation.mails[0].client) and not generation.done.is_set()
        )

    @property
    def patience(self) -> float:
        """Seconds that a request may wait for its first token; 0: any time."""
        return self.config.queue_seconds

    async def expire(self) -> None:
        """Refuse what has waited too long for its first token, for ever."""
        while True:
            await trio.sleep(EXPIRE_EVERY)
            before = time.monotonic_ns() - int(self.patience * 1e9)
            for generation in {choice.generation for choice in self._choices.values()}:
                if generation.waits and generation.mails[0].arrived_ns < before:
                    self._fail(generation, _QUEUED)
                    self._pump(generation)

    def deliver(self, mails: Iterable[Mail[FrontendMail]]) -> None:
        """Take in mail from the tokenizers."""
        woken: dict[Generation, None] = {}
        self.instruments.delivering()
        for mail in mails:
            match mail.message:
                case Deltas(rows=rows):
                    for row in rows:
                        self._row(row, woken)
                case Refused(rid=rid, error=error):
                    self._refused(rid, error, woken)
                case Encoded() | Decoded() as answer:
                    self.questions.take(answer)
                case message:
                    assert_never(message)
        for generation in woken:
            self._pump(generation)
        self.instruments.delivered()

    async def resend(self, tokenizer: int) -> None:
        """Send again what a dead incarnation of a tokenizer may have read and never written to the ledger,
        and follow again what was followed there."""
        name = f"tokenizer.{tokenizer}"
        await self.questions.again(tokenizer)
        generations = {choice.generation for choice in self._choices.values()}
        for generation in generations:
            for mail in generation.mails:
                if self._tokenizer(mail.rids[0]) != name:
                    continue
                if generation.adopted:
                    await self.ask_again(generation)
                elif not generation.begun.is_set() and self._unknown(mail.rids):
                    await self._outbox.send(name, mail)

    def _salted(self, salt: str) -> str:
        return salt if self._account is None else self._account.salted(salt)

    def _tokenizer(self, rid: int) -> str:
        return f"tokenizer.{slot_of(rid) % self.config.tokenizers}"

    def _row(self, row: TextRow, woken: dict[Generation, None]) -> None:
        choice = self._choices.get(row.rid)
        if choice is None:
            return
        generation = choice.generation
        if generation.account is not None:
            generation.account.charge(choice.bill(row))
            self._ledger.set_billed(row.rid, choice.billed)
        if choice.catching_up:
            if not choice.follows(row):
                return
            choice.catching_up = False
            generation.begun.set()
        if generation.waits:
            generation.waits = not row.tokens
            generation.begun.set()
        woken[generation] = None
        if row.tokens:
            self.instruments.heard(choice, row)
        if row.finish is _ERROR:
            self._fail(generation, row.error or _FAILED)
            return
        try:
            generation.sink.feed(choice.index, choice.cut(row))
        except UserError as error:
            self._fail(generation, error.body)
            return
        except Exception:
            self._broken(generation)
            return
        if row.finish is not _NONE:
            self._end(choice)
            self.instruments.ended(choice, row.finish, row.tokens)

    def _refused(self, rid: int, error: ErrorBody, woken: dict[Generation, None]) -> None:
        choice = self._choices.get(rid)
        if choice is None:
            self.slots.refused(rid)
            return
        generation, n = choice.generation, choice.generation.n
        woken[generation] = None
        first = choice.index // n * n
        self._forget([refused.rid for refused in generation.choices[first : first + n]])
        self._fail(generation, error)

    def _forget(self, rids: Iterable[int]) -> None:
        """Free slots of which no actor below has heard."""
        for rid in rids:
            if self._choices.pop(rid, None) is not None:
                self.slots.free(rid)

    def _end(self, choice: Choice) -> None:
        generation = choice.generation
        del self._choices[choice.rid]
        linger = self.config.linger_seconds if generation.mails[0].client else 0.0
        self.slots.leave(choice.rid, aborted=False, linger=linger)
        generation.open -= 1
        if not generation.open:
            generation.end()

    def _fail(self, generation: Generation, error: ErrorBody) -> None:
        self.abort(generation)
        try:
            generation.fail(error)
        except Exception:
            self._report(generation)

    def _pump(self, generation: Generation) -> None:
        try:
            generation.sink.pump()
        except Exception:
            self._broken(generation)

    def _broken(self, generation: Generation) -> None:
        """A sink raised an exception, which is a bug of ours: fail its request, and let the others
        continue."""
        self._report(generation)
        self._fail(generation, _FAILED)

    def _report(self, generation: Generation) -> None:
        """Log the exception that a sink has raised."""
        trace = trace_fields(generation.mails[0].trace)
        self._log.exception("sink_failed", rid=generation.choices[0].rid, **trace)

    def _abort_nowait(self, rid: int) -> bool:
        try:
            self._outbox.send_nowait(self._tokenizer(rid), Abort(rid))
        except trio.WouldBlock:
            return False
        return True

    def _unknown(self, rids: tuple[int, ...]) -> bool:
        return any(self._ledger.is_current(rid) and not self._ledger.request(rid) for rid in rids)


_QUEUED = overloaded("The request waited too long for its turn.").body
_NONE, _ABORT, _ERROR = Finish.NONE, Finish.ABORT, Finish.ERROR
_FAILED = ErrorBody(500, "The engine failed on this request.", "server_error", "internal_error")
