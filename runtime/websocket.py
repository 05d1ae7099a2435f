"""A server's WebSocket on Trio: websockets' sans-I/O protocol decides, our transport moves the bytes.

`receive` hands out whole messages and answers pings and closes on the way; whoever owns the socket must
keep calling it. Sending never parks: frames go to the kernel or into the transport's bounded
backlog. Protocol errors close with 1002, bad UTF-8 with 1007, too large a message with 1009.
"""

from __future__ import annotations

from collections import deque
from http import HTTPStatus

import trio
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from protocols.errors import UserError
from runtime.http import Exchange
from runtime.transport import Transport

CLOSE_SECONDS = 5.0
"""How long a peer may take to answer a close."""


class WebSocket:
    """An open socket."""

    def __init__(self, transport: Transport, protocol: ServerProtocol) -> None:
        self.transport = transport
        self._protocol = protocol
        self._parts: bytearray | None = None
        self._messages: deque[str] = deque()

    @classmethod
    def accept(cls, exchange: Exchange, max_size: int) -> WebSocket:
        """Answer a handshake. Raises UserError (400, 426 ...), to be answered in plain HTTP."""
        head = exchange.head
        if head.method != "GET" or head.version != "1.1":
            raise UserError("A WebSocket handshake is a GET of HTTP/1.1.")
        response = ServerProtocol().accept(Request(head.path, Headers(head.headers)))
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            text = bytes(response.body or b"").decode(errors="replace").partition("\n")[0]
            raise UserError(text, status=response.status_code)
        response.headers["x-request-id"] = exchange.id
        early = exchange.upgrade()
        exchange.transport.write_nowait(response.serialize())
        socket = cls(exchange.transport, ServerProtocol(state=OPEN, max_size=max_size))
        if early:
            socket._absorb(early)
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
            if not self.open:
                return None
            data = await self.transport.receive()
            if not data:
                self._protocol.receive_eof()
                return None
            self._absorb(data)
        return self._messages.popleft()

    def send_nowait(self, messages: list[bytes]) -> None:
        """Send text messages (UTF-8) in one write; nothing happens once the socket is closing."""
        if self._protocol.state is OPEN:
            self.transport.write_nowait(b"".join([_text_frame(message) for message in messages]))

    async def close(self, code: int, reason: str = "") -> None:
        """Close and wait a moment for the peer to do the same."""
        if self._protocol.state is OPEN and self.transport.loss is None:
            self._protocol.send_close(code, reason)
            self._flush()
        with trio.move_on_after(CLOSE_SECONDS):
            await self.transport.drained()
            while not self._protocol.eof_sent and (data := await self.transport.receive()):
                self._absorb(data)

    def _absorb(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            assert isinstance(event, Frame)
            self._frame(event)
        self._flush()

    def _frame(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT:
                self._parts = bytearray(frame.data)
            case Opcode.BINARY:
                self._fail(CloseCode.UNSUPPORTED_DATA, "only text messages are understood")
            case Opcode.CONT if self._parts is not None:
                self._parts += frame.data
            case _:
                return
        if frame.fin and self._parts is not None:
            self._message(self._parts)
            self._parts = None

    def _message(self, data: bytearray) -> None:
        try:
            self._messages.append(data.decode())
        except UnicodeDecodeError:
            self._fail(CloseCode.INVALID_DATA, "text messages are UTF-8")

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
