"""The tokenizer's state machine: mail in, mail out, no clock and no waiting.

    Generate ─► prepare (may run in a thread) ─► admit: ledger record, Submit for each choice
    Tokens   ─► a row of text for each choice ─► Deltas for each frontend, StopHere where a stop string was
    Abort    ─► passed on, and remembered: control mail overtakes the Generate that it speaks of
    Replay   ─► all rows again, for a frontend that takes up the answer of a dead one, and every new one

A choice lives here from its admission to the row that finishes it. What is late, or of a request that
is gone, is dropped: rows carry positions, so nothing is shown twice, and a gap is filled from the ledger.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from actors.aborts import Aborts
from actors.stored_requests import StoredRequests
from actors.tokenizer.codec import Codec, CodecError
from actors.tokenizer.prompt import Prompted, Prompter
from actors.tokenizer.questions import Answerer, Question, refusal
from actors.tokenizer.records import Records, record
from actors.tokenizer.recovery import committed_row, replay
from actors.tokenizer.stream import ChoiceStream
from protocols.config import Config
from protocols.errors import ErrorBody, UserError
from protocols.messages import (
    Abort,
    Deltas,
    Generate,
    Message,
    Refused,
    Replay,
    StopHere,
    TextRow,
    TokenRow,
)
from protocols.request import Finish
from protocols.spans import is_sampled
from protocols.stored import StoredRequest
from protocols.weights import ORIGINAL
from runtime.ledger import Ledger, StaleRequest
from runtime.tracing import trace_fields

Outgoing = tuple[str, Message]
"""Name of the actor to send to, and the message."""

_ABORTED = ErrorBody(499, "The client went away.", "request_aborted", "aborted")
_FAILED = ErrorBody(500, "The tokenizer failed on this prompt.", "server_error", "internal_error")
_GONE = ErrorBody(404, "The response is gone.", code="response_not_found")
_LOST = ErrorBody(500, "Part of the answer was lost.", "server_error", "internal_error")


class Core:
    """All open choices of one tokenizer actor. labels: what weights are called, by their serial."""

    def __init__(self, config: Config, index: int, codec: Codec, ledger: Ledger, log: Any) -> None:
        self.labels: Mapping[int, str] = {ORIGINAL.serial: ORIGINAL.version}
        self._prompter = Prompter(config.model, codec, config.ring_bytes)
        self._answerer = Answerer(codec, self._prompter, config.ring_bytes // 2, log)
        self.down = "balancer" if config.dp > 1 else "scheduler.0"
        self._index = index
        self._codec = codec
        self._ledger = ledger
        self._records = Records(config, ledger, log)
        self._stored = StoredRequests(ledger, log)
        self._log = log
        self._streams: dict[int, ChoiceStream] = {}
        self._aborted = Aborts()

    @property
    def open(self) -> int:
        """Choices that have not finished."""
        return len(self._streams)

    def sampled(self) -> Iterator[int]:
        """The open choices that are traced."""
        return (rid for rid, stream in self._streams.items() if is_sampled(stream.submit.trace))

    # --- down

    def answer(self, question: Question, rendered: str = "") -> list[Outgoing]:
        """The answer to a frontend's question. rendered: the text of a chat. Touches no state: may run in a
        thread."""
        return [(f"frontend.{question.origin}", self._answerer(question, rendered))]

    def refuse(self, message: Generate | Question, error: ErrorBody) -> list[Outgoing]:
        """The refusal of a request whose chat cannot be rendered, or whose rules cannot be kept."""
        if isinstance(message, Generate):
            return self.admit(message, error)
        return [(f"frontend.{message.origin}", refusal(message, error))]

    def fits(self, message: Generate, rendered: str) -> bool:
        """Whether a chat rendered as `rendered` leaves room for its answer; True where that cannot be told
        yet. May run in a thread."""
        try:
            return self._prompter.fits(message, rendered)
        except (UserError, CodecError):
            return True

    def prepare(self, message: Generate, rendered: str = "", grammar: str = "") -> Prompted | ErrorBody:
        """Tokenise a request, or say why not. rendered: the text of a chat; grammar: what its rules mean.
        Touches no state: may run in a thread."""
        try:
            return self._prompter(message, rendered, grammar)
        except UserError as error:
            return error.body
        except CodecError:
            self._log.exception("tokenizer_failed", rid=message.rids[0], **trace_fields(message.trace))
            return _FAILED

    def admit(self, message: Generate, prompted: Prompted | ErrorBody) -> list[Outgoing]:
        """Take up the request: each of its choices that was neither aborted nor taken up before."""
        if isinstance(prompted, ErrorBody):
            return [self._refusal(message, message.rids[0], prompted)]
        fresh = [rid for rid in message.rids if self._is_new(rid)]
        aborted = [rid for rid in fresh if rid in self._aborted]
        stored = [record(message, prompted, rid, self._index) for rid in fresh if rid not in self._aborted]
        refusals = [self._refusal(message, rid, _ABORTED) for rid in aborted]
        try:
            kept = [each for each in stored if self._records.put(each)]
        except UserError as error:
            return refusals + self._no_room(message, fresh, error.body)
        return refusals + [out for each in kept for out in self._begin(each)]

    def _no_room(self, message: Generate, fresh: list[int], error: ErrorBody) -> list[Outgoing]:
        """Refuse a request for which the ledger has no room. Refused would speak of all choices: where some
        run already, because the request was sent twice, the others end by a row, and the frontend then aborts
        those too."""
        if len(fresh) == len(message.rids):
            return [self._refusal(message, message.rids[0], error)]
        return [_deltas(message.origin, [_failed(rid, error) for rid in fresh])]

    def _is_new(self, rid: int) -> bool:
        """False for a Generate that was taken up before: its frontend could not know whether that was read,
        and sent it again."""
        try:
            return rid not in self._streams and not self._ledger.request(rid)
        except StaleRequest:
            return False

    def _begin(self, stored: StoredRequest) -> list[Outgoing]:
        stream = self._streams[stored.submit.rid] = self._stream(stored)
        return [(self.down, stored.submit), *(_deltas(stream.frontend, [row]) for row in stream.opening())]

    def _stream(self, stored: StoredRequest) -> ChoiceStream:
        return ChoiceStream(stored, self._codec, functools.partial(self._weights, stored.submit.rid))

    def _weights(self, rid: int) -> tuple[str, ...]:
        """Versions of the weights that made a choice so far."""
        try:
            return self._ledger.weights(rid).labels(self.labels)
        except StaleRequest:
            return ()

    def _refusal(self, message: Generate, rid: int, error: ErrorBody) -> Outgoing:
        return f"frontend.{message.origin}", Refused(rid, error)

    def abort(self, message: Abort) -> list[Outgoing]:
        """Forget a choice. The abort is always passed on, as the scheduler may not know that the choice has
        ended. Where several frontends may follow it, all are told."""
        stream = self._streams.pop(message.rid, None)
        if stream is None:
            self._aborted.add(message.rid)
        told = stream.readers() if stream is not None and stream.resumable else ()
        return [(self.down, message), *(_deltas(i, [stream.aborted()]) for i in told if stream is not None)]

    def replay(self, message: Replay) -> list[Outgoing]:
        """Everything that a choice has said so far, for a frontend that follows it from now on."""
        rid, to = message.rid, message.origin
        try:
            stored = self._stored.read(rid)
            if stored is None:
                return [(f"frontend.{to}", Refused(rid, _GONE))]
            fresh = self._stream(stored)
            rows = list(replay(fresh, stored, self._ledger, whole=True))
        except StaleRequest:
            return [(f"frontend.{to}", Refused(rid, _GONE))]
        stream = self._streams.get(rid)
        if stream is None and not fresh.closed:
            rows.append(fresh.aborted())
        if stream is not None and to != stream.frontend:
            stream.followers.add(to)
        return [_deltas(to, [row]) for row in rows]

    # --- up

    def take(self, rows: tuple[TokenRow, ...]) -> list[Outgoing]:
        """Take in what one step of the scheduler brought; returns one Deltas for each frontend."""
        streams = self._streams
        deltas: dict[int, list[TextRow]] = {}
        out: list[Outgoing] = []
        for row in rows:
            stream = streams.get(row.rid)
            if stream is None:
                continue
            if row.start > stream.received:
                row = self._filled(row, stream)
            if row.prompt_output is not None:
                out += [_deltas(to, [part]) for part in stream.preface(row) for to in stream.readers()]
            text_row = stream.take(row)
            if text_row is None:
                continue
            if stream.closed:
                out += self._close(stream, row.finish)
            if stream.frontend in deltas:
                deltas[stream.frontend].append(text_row)
            else:
                deltas[stream.frontend] = [text_row]
            for follower in stream.followers:
                deltas.setdefault(follower, []).append(text_row)
        out += [_deltas(frontend, found) for frontend, found in deltas.items()]
        return out

    def _filled(self, row: TokenRow, stream: ChoiceStream) -> TokenRow:
        """The row, together with the committed tokens before it that never arrived here."""
        try:
            return committed_row(self._ledger, stream.submit, row, stream.received)
        except StaleRequest:
            return TokenRow(row.rid, stream.received, (), Finish.ABORT)
        except LookupError:
            trace = self._stored.trace(row.rid)
            self._log.error("rows_lost", rid=row.rid, start=row.start, received=stream.received, **trace)
            return TokenRow(row.rid, stream.received, (), Finish.ERROR, error=_LOST)

    def _close(self, stream: ChoiceStream, finish: Finish) -> list[Outgoing]:
        """The choice has finished; the scheduler is told where only this actor knows that (a stop string)."""
        del self._streams[stream.rid]
        if stream.stopped_at and not finish:
            return [(self.down, StopHere(stream.rid, stream.stopped_at))]
        return []

    # --- after a death

    def recover(self) -> Iterator[Outgoing]:
        """Take up the open choices of earlier incarnations, as the ledger has them. What these may not have
        sent is sent again; positions and ids make that harmless.
        """
        for rid in self._ledger.open_rids():
            try:
                yield from self._recover(rid)
            except StaleRequest:
                self._streams.pop(rid, None)

    def _recover(self, rid: int) -> Iterator[Outgoing]:
        stored = self._stored.read(rid)
        if stored is None or stored.submit.origin != self._index or rid in self._streams:
            return
        yield from self._siblings(stored)
        stream = self._stream(stored)
        self._streams[rid] = stream
        if not len(self._ledger.committed(rid)) and not self._ledger.finish(rid):
            yield self.down, stored.submit
        for row in replay(stream, stored, self._ledger):
            yield _deltas(stream.frontend, [row])
        if stream.closed:
            yield from self._close(stream, self._ledger.finish(rid))

    def _siblings(self, stored: StoredRequest) -> Iterator[Outgoing]:
        """Choices of the same request whose record was not written any more: same prompt, other number."""
        for choice, rid in enumerate(stored.generate.rids):
            if self._ledger.is_current(rid) and not self._ledger.request(rid) and rid not in self._streams:
                sibling = msgspec.structs.replace(
                    stored, submit=msgspec.structs.replace(stored.submit, rid=rid, choice=choice)
                )
                try:
                    yield from self._begin(sibling) if self._records.put(sibling) else ()
                except UserError as error:
                    yield _deltas(stored.generate.origin, [_failed(rid, error.body)])


def _deltas(frontend: int, rows: list[TextRow]) -> Outgoing:
    return f"frontend.{frontend}", Deltas(tuple(rows))


def _failed(rid: int, error: ErrorBody) -> TextRow:
    return TextRow(rid, 0, "", 0, Finish.ERROR, error=error)
