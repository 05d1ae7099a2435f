"""One response of the Responses API as a state machine: rows of text in, numbered events out; sans-I/O.

    NEW ─start─► OPEN ─text─► WRITING ─┬─stop──► COMPLETED
                  │  (item, part)      ├─length► INCOMPLETE
                  │                    ├─cancel► CANCELLED
                  └────────────────────┴─fail──► FAILED

A response without any text still has an item, unless it fails or only warms up.

Every event is a function of the request and its tokens: each token that settles text, or is listed with
its logprobs, is one delta, however the tokens came in rows. So event N is event N whoever makes it, and a
reader who comes back with the number of the last event it saw gets exactly the rest, though another
process may answer it. (Two things are told as the process sees them: `completed_at`, and where a response
was cancelled.)
"""

from __future__ import annotations

import enum
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, assert_never

import msgspec

from actors.answers.parser import AnswerParser
from actors.answers.pieces import Piece, Text
from actors.frontend.reading import Reading
from actors.frontend.response_items import Items, Made, answered
from actors.frontend.text import Meter
from protocols.errors import ErrorBody
from protocols.messages import TextLogprob, TextRow
from protocols.openai.logprobs import TokenLogprob, token_logprob
from protocols.openai.responses import (
    IncompleteDetails,
    InputDetails,
    OutputDetails,
    OutputItem,
    OutputMessage,
    OutputText,
    Response,
    ResponseFailure,
    ResponseUsage,
)
from protocols.request import Finish

_encode = msgspec.json.Encoder().encode


class Phase(enum.Enum):
    """Where a response stands."""

    NEW = enum.auto()
    OPEN = enum.auto()
    WRITING = enum.auto()
    COMPLETED = enum.auto()
    INCOMPLETE = enum.auto()
    CANCELLED = enum.auto()
    FAILED = enum.auto()


class Move(enum.Enum):
    """What may happen to a response."""

    START = enum.auto()
    TEXT = enum.auto()
    STOP = enum.auto()
    LENGTH = enum.auto()
    CANCEL = enum.auto()
    FAIL = enum.auto()


TRANSITIONS: dict[tuple[Phase, Move], Phase] = {
    (Phase.NEW, Move.START): Phase.OPEN,
    (Phase.OPEN, Move.TEXT): Phase.WRITING,
    (Phase.OPEN, Move.STOP): Phase.COMPLETED,
    (Phase.WRITING, Move.STOP): Phase.COMPLETED,
    (Phase.OPEN, Move.LENGTH): Phase.INCOMPLETE,
    (Phase.WRITING, Move.LENGTH): Phase.INCOMPLETE,
    (Phase.OPEN, Move.CANCEL): Phase.CANCELLED,
    (Phase.WRITING, Move.CANCEL): Phase.CANCELLED,
    (Phase.OPEN, Move.FAIL): Phase.FAILED,
    (Phase.WRITING, Move.FAIL): Phase.FAILED,
}
"""Every legal move; any other is a bug."""

_STATUS = {
    Phase.NEW: "queued",
    Phase.OPEN: "in_progress",
    Phase.WRITING: "in_progress",
    Phase.COMPLETED: "completed",
    Phase.INCOMPLETE: "incomplete",
    Phase.CANCELLED: "cancelled",
    Phase.FAILED: "failed",
}
_LAST_EVENT = {
    Phase.COMPLETED: "response.completed",
    Phase.INCOMPLETE: "response.incomplete",
    Phase.CANCELLED: "response.incomplete",
    Phase.FAILED: "response.failed",
}
_MOVES = {
    Finish.STOP: Move.STOP,
    Finish.LENGTH: Move.LENGTH,
    Finish.ABORT: Move.CANCEL,
    Finish.ERROR: Move.FAIL,
}
_NONE = Finish.NONE
_OPEN, _WRITING = Phase.OPEN, Phase.WRITING
DELTA = "response.output_text.delta"


class Event(NamedTuple):
    """One server event, ready to send: `json` is one object."""

    kind: str
    json: bytes


class _Scored(NamedTuple):
    """A delta with logprobs as it is kept; one without is kept as its text."""

    text: str
    logprobs: list[TokenLogprob]


_PLAIN = Reading()
_STRING_BYTES = 64
_LOGPROB_BYTES = 300


class ResponseStream:
    """A response that grows. silent: a warm-up, whose text is thrown away. reading: how its text is to be
    read; where there is nothing to look for, deltas are kept as short as they come."""

    def __init__(
        self, response: Response, item_id: str, *, silent: bool = False, reading: Reading = _PLAIN
    ) -> None:
        self.phase = Phase.NEW
        self._parser = reading.parser() if reading else None
        self._items = Items(reading, item_id.removeprefix("msg_"))
        self._unshown: list[TokenLogprob] = []
        self._response = response
        self._item_id = item_id
        self._silent = silent
        self._pending: list[_Scored | str] = []
        self._meter = Meter(1, 1)
        self._parts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._end: Move | None = None
        self._error: ErrorBody | None = None
        self._log: list[Event | _Scored | str] = []
        place = {"type": DELTA, "item_id": item_id, "output_index": 0, "content_index": 0}
        self._delta_head = _encode(place)[:-1] + b',"delta":'

    @property
    def id(self) -> str:
        """The response's id."""
        return self._response.id

    @property
    def over(self) -> bool:
        """Whether nothing more can come in; the last events may still be untaken."""
        return self._end is not None

    def answer(self) -> tuple[dict[str, Any], int]:
        """The answer so far, as the chat template will see it, and how many characters it has."""
        self._advance()
        if self._parser is not None:
            return answered(self._items.done)
        text = "".join(self._parts)
        return {"role": "assistant", "content": text}, len(text)

    @property
    def size(self) -> int:
        """Bytes of what is kept of it, about."""
        return sum(_size(entry) for entry in self._log)

    def start(self) -> None:
        """The response is under way: events may be taken from now on."""
        self._move(Move.START)
        for kind in ("response.created", "response.in_progress"):
            self._add(kind, response=self._response)

    def feed(self, row: TextRow) -> None:
        """Take in a row."""
        if self._end is not None:
            return
        if not self._silent:
            if self._parser is not None and row.usage is not None and not self._meter.begun:
                self._parser.begin(thinking=row.usage.thinking)
            self._pending += _deltas(row)
        self._meter.add(0, row)
        if row.finish is not _NONE:
            self._end = Move.STOP if self._silent else _MOVES[row.finish]

    def fail(self, error: ErrorBody) -> None:
        """The response ends with an error."""
        if self._end is None:
            self._end, self._error = Move.FAIL, error

    def cancel(self) -> None:
        """Somebody wants no more of it."""
        if self._end is None:
            self._end = Move.CANCEL

    def take(self, cursor: int, limit: int) -> list[Event]:
        """Up to `limit` events from number `cursor` on."""
        self._advance()
        end = min(cursor + limit, len(self._log))
        if cursor + 1 == end:
            return [self._event(cursor)]
        return [self._event(number) for number in range(cursor, end)]

    def finished_at(self, cursor: int) -> bool:
        """Whether a reader that has taken the events before `cursor` has taken the last one."""
        return cursor >= len(self._log) and self.phase in _LAST_EVENT

    def document(self) -> Response:
        """The response as it is now."""
        self._advance()
        return self._response

    def _move(self, move: Move) -> None:
        self.phase = TRANSITIONS[self.phase, move]
        self._response.status = _STATUS[self.phase]

    def _advance(self) -> None:
        """Number what has come in."""
        if self.phase is not _WRITING and self.phase is not _OPEN:
            return
        if self._pending:
            self._write(self._pending)
            self._pending = []
        if self._end is not None:
            self._finish(self._end)

    def _write(self, deltas: list[_Scored | str]) -> None:
        """The deltas, the first one after the item and part that it belongs to."""
        if self._parser is not None:
            for delta in deltas:
                self._write_apart(self._parser, delta)
            return
        if self.phase is _OPEN:
            self._open_item()
        self._log += deltas
        for delta in deltas:
            if isinstance(delta, str):
                self._parts.append(delta)
            else:
                self._parts.append(delta.text)
                self._logprobs += delta.logprobs

    def _write_apart(self, parser: AnswerParser, delta: _Scored | str) -> None:
        """What a delta means. The logprobs of tokens of a text come with the text that they settle."""
        text, logprobs = (delta, []) if isinstance(delta, str) else delta
        self._unshown += logprobs
        pieces = parser.feed(text)
        self._show(pieces)

    def _show(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            logprobs: list[TokenLogprob] = []
            if isinstance(piece, Text):
                logprobs, self._unshown = self._unshown, []
            self._add_made(self._items.take(piece, logprobs))
        if pieces and not isinstance(pieces[-1], Text):
            self._unshown = []

    def _add_made(self, made: Iterable[Made]) -> None:
        for kind, fields in made:
            self._add(f"response.{kind}", **fields)
        if self.phase is Phase.OPEN and not self._items.empty:
            self._move(Move.TEXT)

    def _finish_apart(self, parser: AnswerParser, move: Move) -> None:
        if move is not Move.FAIL:
            self._show(parser.flush())
            if self._items.empty:
                self._add_made(self._items.no_text())
            self._add_made(self._items.close("completed" if move is Move.STOP else "incomplete"))
        self._move(move)
        self._close([*self._items.done, *self._items.left(move is Move.FAIL)])
        self._add(_LAST_EVENT[self.phase], response=self._response)

    def _open_item(self) -> None:
        self._add("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        self._add("response.content_part.added", **self._place(), part=OutputText())
        self._move(Move.TEXT)

    def _finish(self, move: Move) -> None:
        if self._parser is not None and not self._silent:
            self._finish_apart(self._parser, move)
            return
        answers = not self._silent and move is not Move.FAIL
        if answers and self.phase is Phase.OPEN:
            self._open_item()
        started = self.phase is Phase.WRITING
        self._move(move)
        part = OutputText(text="".join(self._parts), logprobs=self._logprobs)
        item = self._item("completed" if move is Move.STOP else "incomplete", [part])
        if answers:
            self._add("response.output_text.done", **self._place(), text=part.text, logprobs=part.logprobs)
            self._add("response.content_part.done", **self._place(), part=part)
            self._add("response.output_item.done", output_index=0, item=item)
        self._close([item] if started else [])
        self._add(_LAST_EVENT[self.phase], response=self._response)

    def _close(self, output: Sequence[OutputItem]) -> None:
        """The document's final fields."""
        response = self._response
        response.output = list(output)
        response.usage = self._usage()
        match self.phase:
            case Phase.COMPLETED:
                response.completed_at = time.time()
            case Phase.INCOMPLETE:
                response.incomplete_details = IncompleteDetails("max_output_tokens")
            case Phase.FAILED:
                error = self._error or ErrorBody(500, "The engine failed on this request.", "server_error")
                response.error = ResponseFailure(
                    error.code or "server_error", error.message, error.type, error.param
                )
            case _:
                pass

    def _usage(self) -> ResponseUsage:
        usage = self._meter.total()
        return ResponseUsage(
            usage.prompt_tokens,
            InputDetails(usage.cached_tokens),
            usage.completion_tokens,
            OutputDetails(usage.reasoning_tokens),
            usage.prompt_tokens + usage.completion_tokens,
        )

    def _item(self, status: str, content: list[OutputText]) -> OutputMessage:
        return OutputMessage(id=self._item_id, status=status, content=content)

    def _place(self) -> dict[str, object]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _add(self, kind: str, **fields: object) -> None:
        document = {"type": kind, "sequence_number": len(self._log), **fields}
        self._log.append(Event(kind, _encode(document)))

    def _event(self, number: int) -> Event:
        match self._log[number]:
            case str(text):
                logprobs = b"[]"
            case _Scored(text, scored):
                logprobs = _encode(scored)
            case event:
                return event
        end = b',"logprobs":%b,"sequence_number":%d}' % (logprobs, number)
        return Event(DELTA, self._delta_head + _encode(text) + end)


def _deltas(row: TextRow) -> Iterator[_Scored | str]:
    """A row token by token: of those with text, or of all where they have logprobs."""
    if not (row.pieces or row.logprobs):  # nearly all rows
        return iter((row.text,) if row.text else ())
    return _one_by_one(row)


def _one_by_one(row: TextRow) -> Iterator[_Scored | str]:
    start = 0
    for length, entry in itertools.zip_longest(row.pieces, row.logprobs[: len(row.pieces)]):
        yield from _delta(row.text[start : start + length], (entry,) if entry else ())
        start += length
    if not row.pieces:
        yield from _delta(row.text, row.logprobs)


def _delta(text: str, logprobs: tuple[TextLogprob, ...]) -> Iterator[_Scored | str]:
    if logprobs:
        yield _Scored(text, [token_logprob(entry) for entry in logprobs])
    elif text:
        yield text


def _size(entry: Event | _Scored | str) -> int:
    match entry:
        case Event():
            return len(entry.json)
        case _Scored():
            entries = sum(1 + len(logprob.top_logprobs) for logprob in entry.logprobs)
            return _STRING_BYTES + len(entry.text) + _LOGPROB_BYTES * entries
        case str():
            return _STRING_BYTES + len(entry)
        case _:
            assert_never(entry)
