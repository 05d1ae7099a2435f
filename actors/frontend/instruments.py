"""What a frontend measures: when requests came, when their text left, how they ended; and which are traced.

A client's traceparent decides whether its request is traced; where there is none, `--trace-sample` does.
Nearly all rows of a delivery come one step after the row before them: those are observed together.
"""

from __future__ import annotations

import random
import time
from typing import Protocol

from protocols.messages import Generate, TextRow
from protocols.meters import E2E, ITL, TTFT, Count
from protocols.request import Finish
from protocols.spans import SpanName, is_sampled
from runtime.blackbox import SAMPLE_ONE, BlackBox, Setting
from runtime.tracing import TraceContext

_COUNTS = {
    Finish.STOP: Count.STOP,
    Finish.LENGTH: Count.LENGTH,
    Finish.ABORT: Count.ABORT,
    Finish.ERROR: Count.ERROR,
}


class Timed(Protocol):
    """A choice as it is measured. arrived: when its request came; last: when its latest row did, 0 for none;
    both in nanoseconds. resumed: another process began it."""

    rid: int
    traced: bool
    arrived: int
    last: int
    resumed: bool


class Instruments:
    """The measurements of one frontend."""

    def __init__(self, box: BlackBox) -> None:
        self._box = box
        self._now = self._before = -1
        self._recording = False
        self._steady = 0
        self._shown: list[tuple[int, int]] = []

    def arrived(self, traceparent: str, unique: str) -> TraceContext:
        """The span of a request that has come with this header. unique: 32 hexadecimal digits, which name its
        span, and its trace where the client has not named one."""
        caller = TraceContext.parse(traceparent)
        if caller is not None:
            context = TraceContext(caller.trace_id, unique[:16], caller.sampled)
        else:
            context = TraceContext(unique, unique[:16], self._draw())
        if context.sampled or self._box.recording:
            above = int(caller.span_id, 16) if caller is not None else 0
            high, low, own = context.numbers()
            self._box.span(SpanName.ARRIVED, 0, time.monotonic_ns(), 0, 0, high, low, above, own)
        return context

    def _draw(self) -> bool:
        wanted = self._box.setting(Setting.SAMPLE)
        return bool(wanted) and random.randrange(SAMPLE_ONE) < wanted

    def began(self, mail: Generate) -> None:
        """A request goes down."""
        if not (is_sampled(mail.trace) or self._box.recording):
            return
        context = TraceContext.parse(mail.trace)
        high, low, own = context.numbers() if context is not None else (0, 0, 0)
        for number, rid in enumerate(mail.rids):
            self._box.span(SpanName.BEGIN, rid, mail.arrived_ns, 0, number, high, low, 0, own)

    def delivering(self) -> None:
        """A delivery begins."""
        self._now = time.monotonic_ns()
        self._recording = bool(self._box.recording)

    def heard(self, choice: Timed, row: TextRow) -> None:
        """A row of a delivery."""
        last, choice.last = choice.last, self._now
        if last == self._before:
            self._steady += 1
        elif last:
            self._box.observe(ITL, self._now - last)
        elif not choice.resumed:
            self._box.observe(TTFT, self._now - choice.arrived)
        if choice.traced or self._recording:
            self._shown.append((choice.rid, row.tokens))

    def delivered(self) -> None:
        """A delivery is done: all rows were passed on."""
        if self._steady:
            self._box.observe(ITL, self._now - self._before, self._steady)
            self._steady = 0
        self._before = self._now
        if self._shown:
            took, rows = time.monotonic_ns() - self._now, len(self._shown)
            for rid, tokens in self._shown:
                self._box.span(SpanName.SOCKET, rid, self._now, took, rows, tokens)
            self._shown.clear()

    def ended(self, choice: Timed, finish: Finish, tokens: int = 0) -> None:
        """A choice has ended."""
        took = time.monotonic_ns() - choice.arrived
        self._box.count(_COUNTS[finish])
        if finish is Finish.STOP or finish is Finish.LENGTH:
            self._box.observe(E2E, took)
        if choice.traced or self._box.recording:
            self._box.span(SpanName.REQUEST, choice.rid, choice.arrived, took, a=finish, b=tokens)
