"""W3C trace context as values."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class TraceContext:
    """Where a request stands in a trace (W3C Trace Context, level 1): 32 and 16 hexadecimal digits."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @classmethod
    def parse(cls, header: str) -> TraceContext | None:
        """The context in a `traceparent` header; None where it is not valid, which the standard wants
        treated as if there were none."""
        match = _TRACEPARENT.fullmatch(header.strip())
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & 1))

    def numbers(self) -> tuple[int, int, int]:
        """Both halves of the trace id, and the span id."""
        return int(self.trace_id[:16], 16), int(self.trace_id[16:], 16), int(self.span_id, 16)

    def child(self) -> TraceContext:
        """A new span below this one."""
        return TraceContext(self.trace_id, secrets.token_hex(8), self.sampled)

    def header(self) -> str:
        """The context as a `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"

    def fields(self) -> dict[str, str]:
        """The context as fields of a log line."""
        return {"trace_id": self.trace_id, "span_id": self.span_id}


def trace_fields(header: str) -> dict[str, str]:
    """The fields of a log line about a request that came with this `traceparent`; none for ""."""
    context = TraceContext.parse(header)
    return context.fields() if context is not None else {}
