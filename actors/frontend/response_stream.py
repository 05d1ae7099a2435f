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
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from actors.answers.pieces import Piece, Text
from actors.frontend.answer_format import AnswerFormat
from actors.frontend.response_events import Delta, Event, Said, said_in, size, texts_of
from actors.frontend.response_items import Items, Made, answered
from actors.frontend.text import Meter
from protocols.errors import ErrorBody
from protocols.messages import TextRow
from protocols.openai.logprobs import TokenLogprob
from protocols.openai.responses import (
    IncompleteDetails,
    InputDetails,
    OutputDetails,
    OutputItem,
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
_PLAIN = AnswerFormat()


class ResponseStream:
    """A response that grows. silent: a warm-up, whose text is thrown away. answer_format: how its text is
    to be read. sealed: see Items."""

    def __init__(
        self,
        response: Response,
        item_id: str,
        *,
        silent: bool = False,
        answer_format: AnswerFormat = _PLAIN,
        sealed: bool = False,
    ) -> None:
        self.phase = Phase.NEW
        self._parser = answer_format.parser() if answer_format else None
        self._items = Items(answer_format, item_id.removeprefix("msg_"), sealed=sealed)
        self._unshown: list[TokenLogprob] = []
        self._response = response
        self._silent = silent
        self._plain = self._parser is None and not silent
        self._pending: list[Said] = []
        self._meter = Meter(1, 1)
        self._end: Move | None = None
        self._error: ErrorBody | None = None
        self._log: list[Event | Delta] = []

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
        return answered(self._items.done)

    @property
    def size(self) -> int:
        """Bytes of what is kept of it, about."""
        return sum(map(size, self._log))

    def start(self) -> None:
        """The response is under way: events may be taken from now on."""
        self._move(Move.START)
        for kind in ("response.created", "response.in_progress"):
            self._add(kind, response=self._response)

    def feed(self, row: TextRow) -> None:
        """Take in a row."""
        if self._end is not None:
            return
        if self._plain and _is_plain(row) and self.phase is _WRITING and not self._pending:  # nearly all
            self._log += map(self._items.say_on, texts_of(row))
            self._meter.count(0, row.tokens)
            return
        if not self._silent:
            if self._parser is not None and row.usage is not None and not self._meter.begun:
                self._parser.begin(thinking=row.usage.thinking)
            self._pending += said_in(row)
        self._meter.add(0, row)
        if row.finish is not _NONE:
            self._end = Move.STOP if self._silent else _MOVES[row.finish]

    def fail(self, error: ErrorBody) -> None:
        """The response ends with an error."""
        if self._end is None:
            self._end, self._error = Move.FAIL, error

    def cancel(self) -> None:
        """Cancel the response."""
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
        """Number the events of what has come in."""
        if self.phase is not _WRITING and self.phase is not _OPEN:
            return
        if self._pending:
            self._write(self._pending)
            self._pending = []
        if self._end is not None:
            self._finish(self._end)

    def _write(self, pending: list[Said]) -> None:
        """The events of text, after those that open its item and part."""
        if self._parser is None:
            for said in pending:
                self._note(self._items.say(said))
        else:
            for said in pending:
                self._unshown += said.logprobs
                self._show(self._parser.feed(said.text))

    def _show(self, pieces: list[Piece]) -> None:
        """What a parser made of the text. The logprobs of tokens come with the text that they settle."""
        for piece in pieces:
            if isinstance(piece, Text):
                logprobs, self._unshown = self._unshown, []
                self._note(self._items.say(Said(piece.text, logprobs)))
            else:
                self._note(self._items.take(piece))
        if pieces and not isinstance(pieces[-1], Text):
            self._unshown = []

    def _note(self, made: Iterable[Made | Delta]) -> None:
        """Give events their numbers."""
        for event in made:
            if isinstance(event, Delta):
                self._log.append(event)
            else:
                kind, fields = event
                self._add(f"response.{kind}", **fields)
        if self.phase is _OPEN and not self._items.empty:
            self._move(Move.TEXT)

    def _finish(self, move: Move) -> None:
        if not self._silent and move is not Move.FAIL:
            if self._parser is not None:
                self._show(self._parser.flush())
            if self._items.empty:
                self._note(self._items.no_text())
            self._note(self._items.close("completed" if move is Move.STOP else "incomplete"))
        self._move(move)
        self._close([*self._items.done, *self._items.left(move is Move.FAIL)])
        self._add(_LAST_EVENT[self.phase], response=self._response)

    def _close(self, output: Sequence[OutputItem]) -> None:
        """The document's final fields."""
        response = self._response
        response.output = list(output)
        response.usage = self._usage()
        response.weight_versions = self._meter.total().weights or msgspec.UNSET
        match self.phase:
            case Phase.COMPLETED:
                response.completed_at = int(time.time())
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

    def _add(self, kind: str, **fields: object) -> None:
        document = {"type": kind, "sequence_number": len(self._log), **fields}
        self._log.append(Event(kind, _encode(document)))

    def _event(self, number: int) -> Event:
        entry = self._log[number]
        return entry.numbered(number) if isinstance(entry, Delta) else entry


def _is_plain(row: TextRow) -> bool:
    """Whether a row is text and nothing else."""
    return bool(row.text) and row.finish is _NONE and row.usage is None and not row.logprobs
