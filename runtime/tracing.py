"""Logs and trace ids: structlog lines on stderr, W3C trace context as values.

A line is written by one system call, so lines of different processes do not mix, and it is not written
where that would wait: an actor must not hang because nobody reads its log, nor die because a disk is
full. Lines that were lost are counted in the next one that is not (`lines_lost`). Tracebacks never
show local variables, for those hold what users have written.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import select
from dataclasses import dataclass
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

STDERR = 2
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LEVELS = tuple(_LEVELS)
"""Values of the option `log_level`."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class _Writer:
    """Writes lines to a descriptor while somebody takes them; structlog's innermost logger."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self.lost = 0

    def msg(self, line: str) -> None:
        """Write one line, or count it as lost."""
        data = f"{line}\n".encode(errors="replace")
        try:
            ready = self._poll.poll(0)
            whole = bool(ready) and os.write(self._fd, data) == len(data)
        except OSError:
            whole = False
        self.lost = 0 if whole else self.lost + 1

    debug = info = warning = error = critical = exception = log = msg


def _stamp(actor: str, incarnation: int) -> Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["actor"], event["incarnation"] = actor, incarnation
        return event

    return add


def _lost_lines(writer: _Writer) -> Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        if writer.lost:
            event["lines_lost"] = writer.lost
        return event

    return add


def _renderers(log_format: str) -> list[Processor]:
    if log_format == "console" or (log_format == "auto" and os.isatty(STDERR)):
        colors = os.isatty(STDERR) and "NO_COLOR" not in os.environ
        return [
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
        ]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


class _Bridge(logging.Handler):
    """Lines of libraries that use the standard library's logging, in our format."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record on."""
        log = structlog.get_logger(record.name)
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def configure(level: str, log_format: str, *, actor: str, incarnation: int = 0) -> Any:
    """Set up this process's logs; returns its logger.

    level: one of LEVELS. log_format: "json", "console", or "auto" (console on a terminal).
    """
    writer = _Writer(STDERR)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _stamp(actor, incarnation),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            _lost_lines(writer),
            *_renderers(log_format),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=max(_LEVELS[level], logging.WARNING), force=True)
    logging.captureWarnings(True)
    return structlog.get_logger()


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
