"""What a tokenizer notes of the requests that are traced."""

from __future__ import annotations

import time
from collections.abc import Iterable

from protocols.messages import Generate, TokenRow
from protocols.request import Finish
from protocols.spans import SpanName, is_sampled
from runtime.blackbox import BlackBox


class Instruments:
    """The trace records of one tokenizer."""

    def __init__(self, box: BlackBox) -> None:
        self._box = box
        self._traced: set[int] = set()

    def follow(self, rids: Iterable[int]) -> None:
        """Trace these choices."""
        self._traced.update(rids)

    def leave(self, rid: int) -> None:
        """The choice has ended."""
        self._traced.discard(rid)

    def took_up(self, message: Generate, kind: SpanName, start: int) -> None:
        """Part of the way down, begun at `start`, is done."""
        sampled = is_sampled(message.trace)
        if sampled:
            self._traced.update(message.rids)
        if sampled or self._box.recording:
            took = time.monotonic_ns() - start
            for rid in message.rids:
                self._box.span(kind, rid, start, took)

    def begin(self) -> int:
        """Before a step's rows are looked at: the time, 0 where nobody wants to know."""
        return time.monotonic_ns() if self._traced or self._box.recording else 0

    def detokenised(self, rows: tuple[TokenRow, ...], start: int) -> None:
        """A step's rows, begun at `start`, have left."""
        took, everybody = time.monotonic_ns() - start, self._box.recording
        for row in rows:
            if everybody or row.rid in self._traced:
                tokens = row.start + len(row.tokens)
                self._box.span(SpanName.DETOKENISE, row.rid, start, took, len(rows), tokens)
            if row.finish is not Finish.NONE:
                self._traced.discard(row.rid)
