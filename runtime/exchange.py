"""One request and its answer, as a handler sees them."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from protocols.errors import ErrorBody, UserError
from protocols.openai.body import error_document
from runtime.http_wire import JSON, Head, Headers, Wire, too_large


class Exchange:
    """One request and its answer, on a connection that may carry more of them. extra: headers that its answer
    has whatever it is. document: how a refusal is written. transport, limits: of the connection below."""

    def __init__(self, head: Head, wire: Wire) -> None:
        self.head = head
        self.id = f"req_{secrets.token_hex(16)}"
        self.started = False
        self.upgraded = False
        self.extra: Callable[[], Headers] = tuple
        self.document: Callable[[ErrorBody], bytes] = error_document
        self.transport = wire.transport
        self.limits = wire.limits
        self._wire = wire
        self._chunked = True
        self._unsent = b""
        self._ended = False

    @property
    def ready(self) -> bool:
        """Whether a piece of the answer would go straight to the kernel."""
        return self.started and self.transport.ready

    async def body(self) -> bytes:
        """The whole body. Raises UserError 413 beyond the limit, 408 past its deadline, 415 where it is
        compressed."""
        codings = ",".join(self.head.values("content-encoding")).lower().split(",")
        if not {*map(str.strip, codings)} <= {"", "identity"}:
            raise UserError("The request body must not be compressed.", status=415)
        lengths, limit = self.head.values("content-length"), self.limits.body_bytes
        if lengths and int(lengths[0]) > limit:
            raise too_large(limit)
        return await self._wire.read_body()

    async def respond(self, status: int, body: bytes, *, kind: str = JSON, headers: Headers = ()) -> None:
        """Answer at once."""
        length = (("content-length", str(len(body))),) if status != 204 else ()
        head = self._start(status, (("content-type", kind), *length, *headers))
        shown = body if self.head.method != "HEAD" else b""
        self.transport.write_nowait(head + self._wire.end(shown))
        await self.transport.drained()

    async def refuse(self, body: ErrorBody, *, headers: Headers = ()) -> None:
        """Answer with an error document."""
        retry = (("retry-after", str(body.retry_after)),) if body.retry_after is not None else ()
        scheme = (("www-authenticate", "Bearer"),) if body.status == 401 else ()
        await self.respond(body.status, self.document(body), headers=(*retry, *scheme, *headers))

    def start_nowait(self, status: int, *, kind: str, headers: Headers = ()) -> None:
        """Begin an answer of unknown length; pieces follow by `write_nowait`, and with the first of them, or
        by `flush_nowait`, its head leaves."""
        self._unsent = self._start(status, (("content-type", kind), *headers))
        self._chunked = self.head.version != "1.0"

    def write_nowait(self, data: bytes, *, last: bool = False) -> None:
        """One piece of a started answer: one chunk, one write; after the last one comes nothing. Framed here
        because h11 takes ten times as long for it; chunk framing keeps no state that h11 would miss."""
        piece = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        if last or self._unsent:
            piece = b"%b%b%b" % (self._unsent, piece, self._end() if last else b"")
            self._unsent = b""
        self.transport.write_nowait(piece)

    def flush_nowait(self) -> None:
        """Send the head of a started answer, if no piece has taken it along."""
        if self._unsent:
            self.transport.write_nowait(self._unsent)
            self._unsent = b""

    async def finish(self) -> None:
        """End the answer, if it has not, and wait until the kernel has it."""
        if not self._ended:
            self.flush_nowait()
            self.transport.write_nowait(self._end())
        await self.transport.drained()

    def _end(self) -> bytes:
        self._ended = True
        return self._wire.end()

    def upgrade(self) -> bytes:
        """Leave HTTP; returns what the client has already sent beyond the request."""
        self.started = self.upgraded = True
        return self._wire.ahead

    def hold(self, size: int) -> None:
        """Count `size` bytes of the client's, instead of what was said before, among those that the server
        keeps. Raises UserError 503 where they are too many."""
        self._wire.hold(size)

    def rest(self, give_way: Callable[[], None]) -> None:
        """An upgraded connection has nothing to do: `give_way` is called when its place is needed."""
        self._wire.occupancy.rest(give_way)

    def work(self, give_way: Callable[[], None]) -> None:
        """It has something to do, or is over."""
        self._wire.occupancy.work(give_way)

    def _start(self, status: int, headers: Headers) -> bytes:
        """The head of the answer."""
        self.started = True
        return self._wire.head(status, (*headers, *self.extra(), ("x-request-id", self.id)))


Handler = Callable[[Exchange], Awaitable[None]]
