"""A server's WebSocket on Trio: websockets' sans-I/O protocol decides, our transport moves the bytes.

`receive` hands out whole messages and answers pings and closes on the way; whoever owns the socket must
keep calling it. Sending never parks: frames go to the kernel or into the transport's bounded
backlog. Protocol errors close with 1002, bad UTF-8 with 1007, too large a message with 1009, one that does
not arrive in time with 1008, and one that the server has no memory for with 1013.
"""

from __future__ import annotations

import codecs
import io
import math
from codecs import IncrementalDecoder as Decoder
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus

import trio
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from protocols.errors import UserError
from runtime.exchange import Exchange
from runtime.transport import Transport

CLOSE_SECONDS = 5.0
"""How long a peer may take to answer a close."""
SLICE = 4096
"""Bytes that are looked at in one go: some hundred of the smallest frames, so that a flood of them leaves the
others their turns."""
MAX_UNSENT = 65536
"""Bytes of answers that may wait for the peer before no more is read from it."""


PROTOCOL = Subprotocol("responses")
"""The subprotocol that is agreed on with a client that offers any; a browser wants one of its own."""
_utf8 = codecs.getincrementaldecoder("utf-8")


class WebSocket:
    """An open socket. hold: see Exchange. seconds: for a message to arrive whole."""

    def __init__(
        self,
        transport: Transport,
        protocol: ServerProtocol,
        hold: Callable[[int], None],
        seconds: float,
    ) -> None:
        self.transport = transport
        self._seconds = seconds
        self._deadline = math.inf
        self._hold = hold
        self._kept = 0
        self._protocol = protocol
        self._text: Decoder | None = None
        self._parts = io.StringIO()
        self._unread = memoryview(b"")
        self._messages: deque[str] = deque()

    @classmethod
    def accept(cls, exchange: Exchange, max_size: int) -> WebSocket:
        """Answer a handshake. Raises UserError (400, 426 ...), to be answered in plain HTTP."""
        head = exchange.head
        if head.method != "GET" or head.version != "1.1":
            raise UserError("A WebSocket handshake is a GET of HTTP/1.1.")
        response = ServerProtocol(select_subprotocol=_agree).accept(Request(head.path, Headers(head.headers)))
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            text = bytes(response.body or b"").decode(errors="replace").partition("\n")[0]
            raise UserError(text, status=response.status_code)
        response.headers["x-request-id"] = exchange.id
        early = exchange.upgrade()
        exchange.transport.write_nowait(response.serialize())
        protocol = ServerProtocol(state=OPEN, max_size=max_size)
        socket = cls(exchange.transport, protocol, exchange.hold, exchange.limits.body_seconds)
        socket._unread = memoryview(early)
        return socket

    @property
    def ready(self) -> bool:
        """Whether a message would go straight to the kernel."""
        return self.transport.ready and self._protocol.state is OPEN

    @property
    def open(self) -> bool:
        """Whether neither side has begun to close."""
        return self._protocol.state is OPEN and self.transport.loss is None

    async def receive(self) -> str | None:
        """The next text message; None once the socket is closing or the peer is gone. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while not self._messages:
            if not self.open or not await self._some():
                return None
            self._absorb()
            if not self._messages:
                await trio.lowlevel.checkpoint()
        return self._messages.popleft()

    async def _some(self) -> bool:
        """Wait until there is something to look at; False at the peer's end. One who sends and does not read
        is not listened to either."""
        if self.transport.backlog > MAX_UNSENT:
            await self.transport.drained()
        if not self._unread:
            with trio.move_on_at(self._deadline) as patience:
                self._unread = memoryview(await self.transport.receive())
                if not self._unread:
                    self._protocol.receive_eof()
            if patience.cancelled_caught:
                self._fail(CloseCode.POLICY_VIOLATION, "the message did not arrive in time")
                self._flush()
        return bool(self._unread)

    def send_nowait(self, messages: list[bytes]) -> None:
        """Send text messages (UTF-8) in one write; nothing happens once the socket is closing."""
        if self._protocol.state is OPEN:
            self.transport.write_nowait(b"".join([_text_frame(message) for message in messages]))

    def keep(self, size: int) -> None:
        """How many bytes of whole messages are worked on or wait for it; they count as unfinished ones do."""
        self._kept = size
        self._count()
        self._flush()

    async def close(self, code: int, reason: str = "", *, seconds: float = CLOSE_SECONDS) -> None:
        """Close and wait for the peer to do the same, for so long."""
        if self._protocol.state is OPEN and self.transport.loss is None:
            self._protocol.send_close(code, reason)
            self._flush()
        with trio.move_on_after(seconds):
            await self.transport.drained()
            while not self._protocol.eof_sent and await self._some():
                self._absorb()
                await trio.lowlevel.checkpoint()

    def _absorb(self) -> None:
        self._protocol.receive_data(bytes(self._unread[:SLICE]))
        self._unread = self._unread[SLICE:]
        for event in self._protocol.events_received():
            assert isinstance(event, Frame)
            self._frame(event)
        self._count()
        self._flush()

    def _count(self) -> None:
        """Have the server count what has come of a message that is not whole, and what is kept."""
        unfinished = self._parts.tell() + len(self._protocol.reader.buffer)
        if not unfinished and self._text is None:
            self._deadline = math.inf
        elif self._deadline == math.inf:
            self._deadline = trio.current_time() + self._seconds
        try:
            self._hold(unfinished + self._kept)
        except UserError:
            self._fail(CloseCode.TRY_AGAIN_LATER, "no memory for this message now")

    def _frame(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT:
                self._text, self._parts = _utf8(), io.StringIO()
                self._piece(self._text, frame)
            case Opcode.CONT if self._text is not None:
                self._piece(self._text, frame)
            case Opcode.BINARY:
                self._fail(CloseCode.UNSUPPORTED_DATA, "only text messages are understood")
            case _:
                pass

    def _piece(self, decoder: Decoder, frame: Frame) -> None:
        """A frame of a text message. Wrong bytes are refused as soon as they come."""
        try:
            self._parts.write(decoder.decode(frame.data, frame.fin))
        except UnicodeDecodeError:
            self._fail(CloseCode.INVALID_DATA, "text messages are UTF-8")
            self._text = None
            return
        if frame.fin:
            self._messages.append(self._parts.getvalue())
            self._text, self._parts = None, io.StringIO()

    def _fail(self, code: CloseCode, reason: str) -> None:
        if self._protocol.state is OPEN:
            self._protocol.fail(code, reason)

    def _flush(self) -> None:
        """Hand the protocol's bytes to the transport; its empty piece ends our side."""
        pieces = self._protocol.data_to_send()
        data = b"".join(pieces)
        if data:
            self.transport.write_nowait(data)
        if b"" in pieces:
            self.transport.end_writing()


def _text_frame(message: bytes) -> bytes:
    """A whole, unmasked text message (RFC 6455, 5.2). Framed here because the protocol object takes six times
    as long; it keeps no state about data frames that are sent whole."""
    size = len(message)
    if size < 126:
        return b"\x81%c%b" % (size, message)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), message)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), message)


def _agree(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return PROTOCOL if PROTOCOL in offered else None
