"""The event stream of chat and completions: rows in, `data:` lines out; sans-I/O.

Order: an opening chunk for each choice (chat: the role), pieces of text, a last chunk for each choice with
its finish reason, usage where asked for, `[DONE]`. What is constant in a chunk is encoded once
a stream, so that a token costs the encoding of its text and one join.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from actors.frontend.text import Meter, Pending, finish_reason, usage_document
from protocols.errors import ErrorBody
from protocols.messages import TextLogprob, TextRow
from protocols.openai.body import error_document
from protocols.request import Finish

DONE = b"data: [DONE]\n\n"
_NO_DETAILS = b'null,"finish_reason":null'
_NONE = Finish.NONE
_encode = msgspec.json.Encoder().encode


class Writer(Protocol):
    """Takes the text of a choice apart. called: it has called a function."""

    called: bool

    def begin(self, *, thinking: bool) -> None:
        """Told before the first text: whether the prompt ends in the midst of a thought."""

    def feed(self, text: str, *, last: bool) -> list[bytes]:
        """The deltas, as JSON objects, that `text` settles."""


class Dialect(Protocol):
    """What differs between the endpoints. kind: of a chunk; prefix: of the answer's id."""

    kind: str
    prefix: str

    def opening(self, index: int) -> bytes:
        """JSON of the choice object that comes before any text; b"" for none."""

    def before(self, index: int) -> bytes:
        """JSON of a choice object up to its text."""

    after: bytes
    """JSON between the text and the logprobs."""

    def logprobs(self, entries: list[TextLogprob], characters: int) -> bytes:
        """JSON of the logprobs of a piece, whose tokens come after `characters` characters."""

    def last(self, index: int) -> bytes:
        """JSON of the choice object without text, up to its finish reason."""

    def writer(self) -> Writer | None:
        """For one choice whose text means more than itself."""


class ChunkStream:
    """One streamed answer. `take` returns what is to be sent; `ended` tells that it was the last."""

    def __init__(
        self,
        dialect: Dialect,
        *,
        id: str,
        created: int,
        model: str,
        choices: int,
        n: int,
        include_usage: bool = False,
        continuous_usage: bool = False,
    ) -> None:
        self._dialect = dialect
        head = {"id": id, "object": dialect.kind, "created": created, "model": model}
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._before = [self._head + dialect.before(index) for index in range(choices)]
        self._after = dialect.after + b'null,"finish_reason":null}' + self._tail
        self._pending = [Pending() for _ in range(choices)]
        self._writers = [dialect.writer() for _ in range(choices)]
        self._meter = Meter(choices, n)
        self._include_usage = include_usage
        self._continuous = continuous_usage
        self._dirty: dict[int, None] = {}
        self._open = choices
        self._opened = False
        self._error: ErrorBody | None = None
        self.ended = False

    def feed(self, index: int, row: TextRow) -> None:
        """Take in a row of choice `index`."""
        self._pending[index].add(row)
        if row.usage is not None or self._continuous:
            self._meter.add(index, row)
        self._dirty[index] = None

    def fail(self, error: ErrorBody) -> None:
        """The stream ends here with an error."""
        self._error = error

    def take(self) -> bytes:
        """Everything that is to be sent now; b"" when nothing new came."""
        out: list[bytes] = []
        if not self._opened:
            self._opened = True
            out += [self._chunk(opening) for i in range(self._open) if (opening := self._dialect.opening(i))]
        for index in self._dirty:
            self._show(index, out)
        self._dirty.clear()
        if not self.ended:
            self._end(out)
        return out[0] if len(out) == 1 else b"".join(out)

    def _show(self, index: int, out: list[bytes]) -> None:
        pending, writer = self._pending[index], self._writers[index]
        if writer is not None:
            self._show_apart(index, pending, writer, out)
        elif pending:
            if pending.detailed or self._continuous:
                out.append(self._detailed(index, pending))
            else:
                out.append(b"%b%b%b" % (self._before[index], _encode(pending.take()), self._after))
        if pending.finish is not _NONE:
            self._open -= 1
            reason = _encode(finish_reason(pending.finish, called=writer is not None and writer.called))
            last = b'%b%b,"stop_reason":%b' % (self._dialect.last(index), reason, _encode(pending.stop))
            made_by = b',"weight_versions":%b' % _encode(pending.weights) if pending.weights else b""
            out.append(self._chunk(b"%b%b}" % (last, made_by)))

    def _show_apart(self, index: int, pending: Pending, writer: Writer, out: list[bytes]) -> None:
        """What the text means, a chunk for each delta; the first has the logprobs and ids of all of it."""
        if not pending.characters:
            writer.begin(thinking=pending.thinking)
        details = self._details(pending)
        text = pending.take()
        deltas = writer.feed(text, last=pending.finish is not Finish.NONE)
        if not deltas and details != _NO_DETAILS:
            deltas = [b"{}"]
        for delta in deltas:
            out.append(self._chunk(b'{"index":%d,"delta":%b,"logprobs":%b}' % (index, delta, details)))
            details = _NO_DETAILS

    def _details(self, pending: Pending) -> bytes:
        """JSON of logprobs and ids, up to the end of the choice object."""
        entries = pending.prompt_logprobs + pending.logprobs
        logprobs = self._dialect.logprobs(entries, pending.listed) if entries else b"null"
        ids = b',"token_ids":' + _encode(pending.token_ids) if pending.token_ids else b""
        if pending.prompt_ids:
            ids += b',"prompt_token_ids":' + _encode(pending.prompt_ids)
        return logprobs + ids + b',"finish_reason":null'

    def _detailed(self, index: int, pending: Pending) -> bytes:
        """A chunk with more than text."""
        dialect, details = self._dialect, self._details(pending)
        text = _encode(pending.take())
        return self._chunk(b"%b%b%b%b}" % (dialect.before(index), text, dialect.after, details))

    def _chunk(self, choice: bytes) -> bytes:
        if not self._continuous:
            return self._head + choice + self._tail
        usage = _encode(usage_document(self._meter.total()))
        return b'%b%b],"usage":%b}\n\n' % (self._head, choice, usage)

    def _end(self, out: list[bytes]) -> None:
        if self._error is not None:
            out += [b"data: ", error_document(self._error), b"\n\n", DONE]
            self.ended = True
        elif not self._open:
            if self._include_usage:
                usage = _encode(usage_document(self._meter.total()))
                out.append(b'%b],"usage":%b}\n\n' % (self._head, usage))
            out.append(DONE)
            self.ended = True
