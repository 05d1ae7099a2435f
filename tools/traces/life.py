"""The life of one request, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protocols.spans import SpanName
from tools.traces.spans import ROWS, Span, trace_id

_MANY = (*ROWS, SpanName.STEP, SpanName.DETOKENISE, SpanName.SOCKET)
"""Kinds of which a request has one a token."""


def document(spans: list[Span]) -> dict[str, Any]:
    """The spans of one request's life, times in milliseconds from the first."""
    begun = spans[0].record.start
    named = [trace_id(span) for span in spans if span.kind is SpanName.BEGIN]
    rids = sorted({span.record.rid for span in spans} - {0})
    return {
        "trace": named[0] if named else "",
        "choices": rids,
        "summary": _summary(spans),
        "spans": [_row(span, begun) for span in spans],
    }


def _row(span: Span, begun: int) -> dict[str, Any]:
    return {
        "at": (span.record.start - begun) / 1e6,
        "took": span.record.duration / 1e6,
        "actor": span.actor,
        "incarnation": span.record.incarnation,
        "what": span.kind.name.lower(),
        "choice": span.record.rid or None,
        "more": span.text(),
    }


def _summary(spans: list[Span]) -> dict[str, Any]:
    """Milliseconds spent in each part, and the request's part of the steps it was in."""
    totals: dict[str, float] = {}
    for span in spans:
        if span.kind not in (SpanName.ARRIVED, SpanName.BEGIN, SpanName.STEP):
            name = span.kind.name.lower()
            totals[name] = totals.get(name, 0.0) + span.record.duration / 1e6
    steps = [span.record for span in spans if span.kind in ROWS]
    tokens = sum(step.d for step in steps)
    share = sum(step.c for step in steps) / tokens if tokens else 0.0
    return {"milliseconds": totals, "steps": len(steps), "share_of_steps": share}


def shortened(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows with all that comes once a token put together, but for the first of each kind of an actor."""
    many = {kind.name.lower() for kind in _MANY}
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["what"] in many:
            run = runs.setdefault((row["actor"], row["what"]), [])
            run.append(row)
            if len(run) > 1:
                continue
        yield row
    for (actor, what), run in runs.items():
        rest = [row["took"] for row in run[1:]]
        if rest:
            mean = sum(rest) / len(rest)
            more = f"{len(rest)} more: {mean:.2f} ms each ({min(rest):.2f} to {max(rest):.2f})"
            yield {"at": run[1]["at"], "took": sum(rest), "actor": actor, "what": what, "more": more}
