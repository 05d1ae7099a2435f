"""A trace in Chrome's JSON format, which https://ui.perfetto.dev shows.

A process for each actor, in it a track for each request and one for the rest; arrows where a message went.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from protocols.spans import SpanName
from tools.traces.spans import ROWS, Span

Event = dict[str, Any]
_DOWN = {
    SpanName.ENCODE: (SpanName.RENDER, SpanName.BEGIN),
    SpanName.RENDER: (SpanName.BEGIN,),
    SpanName.ROUTE: (SpanName.ENCODE,),
    SpanName.QUEUE: (SpanName.ROUTE, SpanName.ENCODE),
    SpanName.DETOKENISE: ROWS,
    SpanName.SOCKET: (SpanName.DETOKENISE,),
}
"""From which kinds of span of the same choice an arrow leads to one of this kind: the latest before it."""


def document(spans: list[Span]) -> dict[str, Any]:
    """The whole file. Times are microseconds of CLOCK_MONOTONIC."""
    actors = {name: number for number, name in enumerate(sorted({span.actor for span in spans}), 1)}
    tracks = {rid: number for number, rid in enumerate(sorted({span.record.rid for span in spans}))}
    events = [*_names(actors, tracks, spans), *(_slice(span, actors, tracks) for span in spans)]
    for number, (source, target) in enumerate(_hops(spans), 1):
        events += _arrow(number, source, target, actors, tracks)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _names(actors: dict[str, int], tracks: dict[int, int], spans: Iterable[Span]) -> Iterator[Event]:
    for name, pid in actors.items():
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
    for actor, rid in sorted({(span.actor, span.record.rid) for span in spans}):
        args = {"name": f"request {rid}" if rid else "own work"}
        yield {"ph": "M", "name": "thread_name", "pid": actors[actor], "tid": tracks[rid], "args": args}


def _place(span: Span, actors: dict[str, int], tracks: dict[int, int]) -> Event:
    return {"pid": actors[span.actor], "tid": tracks[span.record.rid]}


def _slice(span: Span, actors: dict[str, int], tracks: dict[int, int]) -> Event:
    record = span.record
    return {
        "ph": "X",
        "name": span.kind.name.lower(),
        "cat": "troupe",
        "ts": record.start / 1e3,
        "dur": max(record.duration / 1e3, 1.0),
        **_place(span, actors, tracks),
        "args": {"about": span.text(), "incarnation": record.incarnation, "choice": record.rid},
    }


def _arrow(
    number: int, source: Span, target: Span, actors: dict[str, int], tracks: dict[int, int]
) -> Iterator[Event]:
    common = {"name": "message", "cat": "hop", "id": number}
    leaves = source.record.start if target.kind is SpanName.STEP else source.record.end
    leaves = max(min(leaves, target.record.start), source.record.start)
    yield {**common, "ph": "s", "ts": leaves / 1e3, **_place(source, actors, tracks)}
    end = {"bp": "e", "ts": target.record.start / 1e3}
    yield {**common, "ph": "f", **end, **_place(target, actors, tracks)}


def _hops(spans: list[Span]) -> Iterator[tuple[Span, Span]]:
    """Where a message led from one span to the next. `spans` are in the order of their starts."""
    latest: dict[tuple[int, SpanName], Span] = {}
    launched: dict[tuple[str, int, int], Span] = {}
    for span in spans:
        rid, kind = span.record.rid, span.kind
        sources = [latest[rid, each] for each in _DOWN.get(kind, ()) if (rid, each) in latest]
        if sources:
            yield max(sources, key=lambda source: source.record.start), span
        if kind is SpanName.STEP and span.step in launched:
            yield launched[span.step], span
        if kind in ROWS:
            launched.setdefault(span.step, span)
        latest[rid, kind] = span
