"""Records of all actors, joined: which request, which step, whose span."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from protocols.request import Finish
from protocols.spans import Record, SpanName, records

_HEX = re.compile(r"(?:[a-z]+[_-])?([0-9a-f]{32})")
_RESPONSE = re.compile(r"resp_([0-9a-f]{1,16})_[0-9a-f]{32}")
ROWS = (SpanName.PREFILL, SpanName.DECODE)


@dataclasses.dataclass(frozen=True)
class Span:
    """One record and the actor that wrote it."""

    actor: str
    record: Record

    @property
    def kind(self) -> SpanName:
        """What it tells."""
        return SpanName(self.record.kind)

    @property
    def step(self) -> tuple[str, int, int]:
        """Replica, epoch and step that a record of a scheduler or an executor speaks of."""
        return self.actor.partition(".")[2], self.record.a, self.record.b

    def text(self) -> str:
        """What there is to say besides its times."""
        r = self.record
        match self.kind:
            case SpanName.REQUEST:
                return f"{Finish(r.a).name.lower()}, {r.b} tokens"
            case SpanName.PREFILL | SpanName.DECODE:
                return f"step {r.b}: {r.c} of {r.d} tokens"
            case SpanName.STEP:
                return f"step {r.b}: {_counted(r.items, 'row')}"
            case SpanName.DETOKENISE | SpanName.SOCKET:
                return (
                    f"token {r.a}, with {_counted(r.items - 1, 'other row')}"
                    if r.items > 1
                    else f"token {r.a}"
                )
            case SpanName.ROUTE:
                return f"to replica {r.a}"
            case SpanName.TURN:
                return _counted(r.items, "message")
            case _:
                return ""


class Tapes:
    """All that was read. Spans are in the order of their starts."""

    def __init__(self, read: Mapping[str, Iterable[bytes]]) -> None:
        self.spans = sorted(
            (Span(actor, record) for actor, parts in read.items() for record in records(b"".join(parts))),
            key=lambda span: (span.record.start, span.record.kind),
        )

    def find(self, id: str) -> set[int]:
        """The choices that an id names: of a request, a response, a trace, or a choice's own number."""
        if id.isdecimal() and len(id) < 20:
            return {int(id)} & self.choices()
        if response := _RESPONSE.fullmatch(id):
            return {int(response.group(1), 16)} & self.choices()
        if not (named := _HEX.fullmatch(id)):
            return set()
        high, low = int(named.group(1)[:16], 16), int(named.group(1)[16:], 16)
        return {
            span.record.rid
            for span in self.spans
            if span.kind is SpanName.BEGIN
            and ((span.record.a, span.record.b) == (high, low) or span.record.d == high)
        }

    def choices(self) -> set[int]:
        """Everybody who is traced."""
        return {span.record.rid for span in self.spans} - {0}

    def life(self, rids: set[int]) -> list[Span]:
        """What happened to these choices, with the steps they were in and the arrival of their request."""
        mine = [span for span in self.spans if span.record.rid in rids]
        steps = {span.step for span in mine if span.kind in ROWS}
        begins = {span.record.d for span in mine if span.kind is SpanName.BEGIN}
        return [
            span
            for span in self.spans
            if span.record.rid in rids
            or (span.kind is SpanName.STEP and span.step in steps)
            or (span.kind is SpanName.ARRIVED and span.record.d in begins)
        ]


def trace_id(span: Span) -> str:
    """The W3C trace id that an ARRIVED or BEGIN speaks of."""
    return f"{span.record.a:016x}{span.record.b:016x}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
