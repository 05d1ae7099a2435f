"""What a scheduler measures: how long its requests wait, are prefilled and decode, and whose each step was.

It watches what goes in and out of the core, and decides nothing. For a request that nobody traces it does
something when it comes, when a plan opens or prefills it, and when it ends; for a step, one look at its size.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from actors.scheduler.commands import Resume
from actors.scheduler.core import Mail
from protocols.messages import Submit, TokenRow
from protocols.meters import DECODE, ITERATION, PREFILL, QUEUE, Count, Named
from protocols.plan import Plan, StepDone
from protocols.request import Finish
from protocols.spans import SpanName, is_sampled
from runtime.blackbox import BlackBox

_NONE = Finish.NONE


class _Request:
    """What is known of an open choice. waits, opened, first: when it began to wait for a plan, when one
    opened it, when its first token came (nanoseconds, 0: not yet). resumed: an earlier incarnation had it.
    again: what is prefilled now was computed before. place: among those of its adapter; None: it is over."""

    __slots__ = ("adapter", "again", "first", "opened", "place", "resumed", "rid", "traced", "waits")

    def __init__(self, submit: Submit, now: int, *, resumed: bool) -> None:
        self.rid = submit.rid
        self.traced = is_sampled(submit.trace)
        self.waits = now
        self.opened = self.first = 0
        self.resumed = self.again = resumed
        self.adapter = submit.adapter
        self.place: Named | None = None


class _Share(NamedTuple):
    """One row of a step that is traced."""

    kind: SpanName
    rid: int
    tokens: int


class _Flight(NamedTuple):
    """A step in the air. firsts: whose first token it brings."""

    epoch: int
    step: int
    launched: int
    tokens: int
    firsts: tuple[_Request, ...]
    shares: tuple[_Share, ...]


class Instruments:
    """The measurements of one scheduler."""

    def __init__(self, box: BlackBox) -> None:
        self._box = box
        self._requests: dict[int, _Request] = {}
        self._slots: dict[int, _Request] = {}
        self._flights: deque[_Flight] = deque()
        self._traced = 0
        self._epoch = -1
        self._users: dict[Named, Counter[int]] = {place: Counter() for place in Named}
        for place in Named:
            box.name(place, ())

    def heard(self, message: Mail) -> None:
        """`message` is about to go to the core."""
        match message:
            case StepDone():
                self._landed(message)
            case Submit():
                self._came(message, resumed=False)
            case Resume(submit):
                self._came(submit, resumed=True)
            case _:
                pass

    def _came(self, submit: Submit, *, resumed: bool) -> None:
        if submit.rid not in self._requests:
            request = self._requests[submit.rid] = _Request(submit, time.monotonic_ns(), resumed=resumed)
            self._traced += request.traced
            self._put(request, Named.WAITING)

    def ended(self, rid: int) -> None:
        """A choice takes no more part in any step."""
        request = self._requests.pop(rid, None)
        if request is None:
            return
        self._traced -= request.traced
        self._put(request, None)
        if request.first:
            self._box.observe(DECODE, time.monotonic_ns() - request.first)

    def finished(self, rows: Sequence[TokenRow]) -> None:
        """Rows of which some may be the last of their choices."""
        for row in rows:
            if row.finish is not _NONE:
                self.ended(row.rid)

    def launched(self, plan: Plan) -> Plan:
        """A step leaves; returns the plan as it is to be sent."""
        now = time.monotonic_ns()
        if plan.epoch != self._epoch:
            self._epoch = plan.epoch
            self._leave(list(self._slots), now)
            self._flights.clear()
        self._leave(plan.closes, now)
        for opening in plan.opens:
            request = self._requests.get(opening.rid)
            if request is not None:
                self._slots[opening.slot] = request
                self._put(request, Named.RUNNING)
                self._open(request, now, opening.prompt_len)
        tokens = len(plan.decodes) // 4 * plan.rounds
        firsts: tuple[_Request, ...] = ()
        if plan.chunks:
            tokens += sum(len(chunk.tokens) for chunk in plan.chunks) // 4
            firsts = self._prefilled(plan)
        self._box.observe(ITERATION, tokens)
        tracing = self._traced or self._box.recording
        shares = self._shares(plan) if tracing else ()
        self._flights.append(_Flight(plan.epoch, plan.step, now, tokens, firsts, shares))
        return msgspec.structs.replace(plan, traced=True) if shares else plan

    def _landed(self, done: StepDone) -> None:
        if not self._flights or (self._flights[0].epoch, self._flights[0].step) != (done.epoch, done.step):
            return
        flight, now = self._flights.popleft(), time.monotonic_ns()
        for request in flight.firsts:
            if not request.first:
                request.first = now
                self._box.observe(PREFILL, now - request.opened)
        for kind, rid, tokens in flight.shares:
            self._box.span(
                kind,
                rid,
                flight.launched,
                now - flight.launched,
                a=flight.epoch,
                b=flight.step,
                c=tokens,
                d=flight.tokens,
            )

    def turned(self, start: int, mail: int) -> None:
        """A turn that began at `start` is over; it took in so many messages."""
        if self._traced or self._box.recording:
            self._box.span(SpanName.TURN, 0, start, time.monotonic_ns() - start, mail)

    def _open(self, request: _Request, now: int, prompt_len: int) -> None:
        if request.traced or self._box.recording:
            self._box.span(SpanName.QUEUE, request.rid, request.waits, now - request.waits, a=prompt_len)
        if request.opened:
            request.again = True
            return
        request.opened = now
        if not request.resumed:
            self._box.observe(QUEUE, now - request.waits)

    def _leave(self, slots: Sequence[int], now: int) -> None:
        """The sequences on these slots have ended, or wait again."""
        for slot in slots:
            request = self._slots.pop(slot, None)
            if request is not None:
                request.waits = now
                if request.place is not None:
                    self._put(request, Named.WAITING)

    def _put(self, request: _Request, place: Named | None) -> None:
        """Count a request as waiting or running among those of its adapter, and show these numbers."""
        before, request.place = request.place, place
        if not request.adapter or before is place:
            return
        for where, more in ((before, -1), (place, 1)):
            if where is None:
                continue
            users = self._users[where]
            users[request.adapter] += more
            if not users[request.adapter]:
                del users[request.adapter]
            self._box.name(where, sorted(users))

    def _prefilled(self, plan: Plan) -> tuple[_Request, ...]:
        firsts = []
        for chunk in plan.chunks:
            request = self._slots.get(chunk.slot)
            if request is None:
                continue
            if request.again:
                self._box.count(Count.REPLAYED, len(chunk.tokens) // 4)
            if chunk.sample and not request.first and not request.resumed:
                firsts.append(request)
        return tuple(firsts)

    def _shares(self, plan: Plan) -> tuple[_Share, ...]:
        """The rows of those who are traced."""
        everybody = self._box.recording
        shares = [
            _Share(SpanName.PREFILL, request.rid, len(chunk.tokens) // 4)
            for chunk in plan.chunks
            if (request := self._slots.get(chunk.slot)) and (request.traced or everybody)
        ]
        decoding = np.frombuffer(plan.decodes, "<i4").tolist()
        return tuple(shares) + tuple(
            _Share(SpanName.DECODE, request.rid, plan.rounds)
            for slot in decoding
            if (request := self._slots.get(slot)) and (request.traced or everybody)
        )
