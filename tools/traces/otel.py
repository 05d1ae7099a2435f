"""Finished requests as OpenTelemetry's spans, with the names of its conventions for generative AI.

The SDK's exporter sends them; nothing of it is known to the actors. The span of a request keeps the ids that
travelled with it, so it hangs below the client's; spans of its parts are its children.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from protocols.request import Finish
from protocols.spans import SpanName
from tools.traces.spans import Span, Tapes

_PARTS = (SpanName.RENDER, SpanName.ENCODE, SpanName.ROUTE, SpanName.QUEUE, SpanName.PREFILL)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Converter:
    """Makes spans of one company's requests, each once."""

    def __init__(self, company: str, model: str) -> None:
        self._resource = Resource({"service.name": "troupe", "service.instance.id": company})
        self._model = model
        self._offset = 0
        self._done: set[int] = set()

    def spans(self, tapes: Tapes, offset: int) -> Iterator[ReadableSpan]:
        """Of the requests that have ended since the last time. offset: the wall's clock minus the records'
        (nanoseconds)."""
        self._offset = offset
        ended = {span.record.rid for span in tapes.spans if span.kind is SpanName.REQUEST}
        for rid in sorted(ended - self._done):
            life = tapes.life({rid})
            if any(span.kind is SpanName.BEGIN for span in life):
                yield from self._request(life)
        self._done |= ended

    def _request(self, life: list[Span]) -> Iterator[ReadableSpan]:
        begin = next(span.record for span in life if span.kind is SpanName.BEGIN)
        whole = next(span.record for span in life if span.kind is SpanName.REQUEST)
        above = [span.record.c for span in life if span.kind is SpanName.ARRIVED and span.record.c]
        trace = begin.a << 64 | begin.b
        own = begin.d if not begin.items else _number(begin.d, begin.rid, -1)
        root = _context(trace, own)
        prompt = sum(span.record.c for span in life if span.kind is SpanName.PREFILL)
        yield self._span(
            f"generate {self._model}",
            root,
            _context(trace, above[0]) if above else None,
            whole.start,
            whole.end,
            {
                "gen_ai.operation.name": "generate_content",
                "gen_ai.provider.name": "troupe",
                "gen_ai.request.model": self._model,
                "gen_ai.response.model": self._model,
                "gen_ai.usage.output_tokens": whole.b,
                "gen_ai.response.finish_reasons": (Finish(whole.a).name.lower(),),
                "troupe.prefilled_tokens": prompt,
            },
            SpanKind.SERVER,
        )
        for number, span in enumerate(life, 1):
            if span.kind in _PARTS:
                context = _context(trace, _number(own, span.record.rid, number))
                about = {"troupe.actor": span.actor, "troupe.about": span.text()}
                name = span.kind.name.lower()
                yield self._span(name, context, root, span.record.start, span.record.end, about)
        decodes = [span for span in life if span.kind is SpanName.DECODE]
        if decodes:
            context = _context(trace, _number(own, whole.rid, 0))
            steps = {"troupe.actor": decodes[0].actor, "troupe.steps": len(decodes)}
            end = max(span.record.end for span in decodes)
            yield self._span("decode", context, root, decodes[0].record.start, end, steps)

    def _span(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        start: int,
        end: int,
        attributes: dict[str, Any],
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> ReadableSpan:
        return ReadableSpan(
            name=name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            kind=kind,
            start_time=start + self._offset,
            end_time=end + self._offset,
        )


def _context(trace: int, span: int) -> SpanContext:
    return SpanContext(trace, span, is_remote=False, trace_flags=_SAMPLED)


def _number(own: int, rid: int, number: int) -> int:
    """A span id that is the same whoever makes it again."""
    digest = hashlib.blake2b(f"{own} {rid} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) or 1
