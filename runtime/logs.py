"""Logs: structlog lines on stderr, and on the tape of the actor's black box.

A line is written by one system call, so lines of different processes do not mix, and it is not written
where that would wait: an actor must not hang because nobody reads its log, nor die because a disk is
full. Lines that were lost are counted in the next one that is not (`lines_lost`). The tape has every line as
JSON, whatever stderr shows and whether anybody reads that; `actorctl logs` reads it. Tracebacks never show
local variables, for those hold what users have written.
"""

from __future__ import annotations

import json
import logging
import os
import select
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from runtime.blackbox import BlackBox, Setting

STDERR = 2
LEVEL_NUMBERS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
LEVELS = tuple(LEVEL_NUMBERS)
"""Values of the option `log_level`."""

LONGEST = 8192
"""Characters of a line on a tape; in a longer one, texts are shortened to SHORTENED."""
SHORTENED = 1500


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


class _Nowhere:
    """The innermost logger of lines that are on the tape already."""

    def msg(self, **_line: Any) -> None:
        """Nothing is left to do."""

    debug = info = warning = error = critical = exception = log = msg


def _stamp(actor: str, incarnation: int) -> Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["actor"], event["incarnation"] = actor, incarnation
        return event

    return add


def _from_level(lowest: int, box: BlackBox) -> Processor:
    """Drop what is below the level that an administrator has set, or else the options."""

    def sift(_logger: Any, method: str, event: EventDict) -> EventDict:
        if LEVEL_NUMBERS.get(method, logging.ERROR) < (box.setting(Setting.LEVEL) or lowest):
            raise structlog.DropEvent
        return event

    return sift


def _lost_lines(writer: _Writer) -> Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        if writer.lost:
            event["lines_lost"] = writer.lost
        return event

    return add


def _keep(box: BlackBox) -> Processor:
    """Put the line on the tape."""

    def write(logger: Any, method: str, event: EventDict) -> EventDict:
        kept = dict(structlog.processors.format_exc_info(logger, method, {**event}))
        line = json.dumps(kept, default=str)
        if len(line) > LONGEST:
            kept = {key: _short(value) for key, value in list(kept.items())[:20]}
            line = json.dumps(kept)
        box.log.append(f"{line}\n".encode(errors="replace"))
        return event

    return write


def _short(value: object) -> object:
    """The end of a long text, where a traceback tells what happened."""
    if isinstance(value, bool | int | float | None):
        return value
    text = str(value)
    return text if len(text) <= SHORTENED else f"...{text[-SHORTENED:]}"


def _renderers(log_format: str) -> list[Processor]:
    if log_format == "console" or (log_format == "auto" and os.isatty(STDERR)):
        return [human(colors=os.isatty(STDERR) and "NO_COLOR" not in os.environ)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


def human(*, colors: bool) -> structlog.dev.ConsoleRenderer:
    """The renderer of lines for people."""
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)


class _Bridge(logging.Handler):
    """Lines of libraries that use the standard library's logging, in our format."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record on."""
        log = structlog.get_logger(record.name)
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def _common(actor: str, incarnation: int) -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        _stamp(actor, incarnation),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def configure(level: str, log_format: str, *, actor: str, box: BlackBox, incarnation: int = 0) -> Any:
    """Set up this process's logs; returns its logger.

    level: one of LEVELS. log_format: "json", "console", or "auto" (console on a terminal). box: has the tape,
    and the word by which the level is changed while the process runs.
    """
    writer = _Writer(STDERR)
    structlog.configure(
        processors=[
            _from_level(LEVEL_NUMBERS[level], box),
            *_common(actor, incarnation),
            _lost_lines(writer),
            _keep(box),
            *_renderers(log_format),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    return structlog.get_logger()


def taped(actor: str, box: BlackBox) -> Any:
    """A logger whose lines go on the tape alone: of what stderr is told in another form."""
    return structlog.wrap_logger(_Nowhere(), processors=[*_common(actor, 0), _keep(box)])
