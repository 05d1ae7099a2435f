"""The WebSocket over real sockets, frame by frame: messages, control frames, and the codes it closes with."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import structlog
import trio

from runtime.exchange import Exchange
from runtime.http import HttpServer
from runtime.occupancy import Limits
from runtime.websocket import WebSocket
from tests.patience import PATIENCE

HANDSHAKE = (
    b"GET /socket HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT, BINARY, CLOSE, PING, PONG, CONT = 1, 2, 8, 9, 10, 0
MAX_SIZE = 100_000


def frame(opcode: int, data: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    first = bytes([opcode | (0x80 if fin else 0)])
    mask = 0x80 if masked else 0
    if len(data) < 126:
        size = bytes([mask | len(data)])
    elif len(data) < 65536:
        size = struct.pack("!BH", mask | 126, len(data))
    else:
        size = struct.pack("!BQ", mask | 127, len(data))
    return first + size + (b"\0\0\0\0" if masked else b"") + data


class Client:
    """Says and reads single frames."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)

    async def take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self.buffer += data
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    async def head(self) -> bytes:
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += await self.stream.receive_some(65536)
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head

    async def frame(self) -> tuple[int, bytes]:
        first, size = await self.take(2)
        assert first & 0x80 and not size & 0x80, "servers neither fragment nor mask"
        if size == 126:
            size = struct.unpack("!H", await self.take(2))[0]
        elif size == 127:
            size = struct.unpack("!Q", await self.take(8))[0]
        return first & 15, await self.take(size)

    async def close_code(self) -> int:
        """The code of the close frame that comes next; then the server ends the connection."""
        opcode, data = await self.frame()
        assert opcode == CLOSE
        with pytest.raises(EOFError):
            await self.take(1)
        return int(struct.unpack("!H", data[:2])[0])


async def echo(exchange: Exchange) -> None:
    web = WebSocket.accept(exchange, MAX_SIZE)
    while (message := await web.receive()) is not None:
        if message == "restart":
            break
        web.send_nowait([part.encode() for part in message.split("|")])
    await web.close(1012, "restart")


@contextlib.asynccontextmanager
async def connected(handshake: bytes = HANDSHAKE) -> AsyncIterator[Client]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HttpServer(echo, Limits(), structlog.get_logger())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listener)
            stream = await trio.open_tcp_stream("127.0.0.1", listener.getsockname()[1])
            client = Client(stream)
            with trio.fail_after(PATIENCE):
                await client.send(handshake)
                async with stream:
                    yield client
            nursery.cancel_scope.cancel()


async def test_handshake_and_messages() -> None:
    async with connected(HANDSHAKE + frame(TEXT, b"early")) as client:
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        assert b"xtensions" not in head
        assert await client.frame() == (TEXT, b"early")
        await client.send(frame(TEXT, "über|zwei".encode()))
        assert await client.frame() == (TEXT, "über".encode())
        assert await client.frame() == (TEXT, b"zwei")
        await client.send(frame(TEXT, b"x" * MAX_SIZE))
        assert await client.frame() == (TEXT, b"x" * MAX_SIZE)


async def test_fragments_with_control_frames_between() -> None:
    async with connected() as client:
        await client.head()
        euro = "€".encode()
        await client.send(frame(TEXT, euro[:1], fin=False) + frame(PING, b"are you there"))
        assert await client.frame() == (PONG, b"are you there")
        await client.send(frame(CONT, b"", fin=False) + frame(CONT, euro[1:]))
        assert await client.frame() == (TEXT, euro)


async def test_byte_by_byte() -> None:
    async with connected() as client:
        await client.head()
        for byte in frame(TEXT, b"slowly"):
            await client.send(bytes([byte]))
        assert await client.frame() == (TEXT, b"slowly")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(TEXT, b"a" * (MAX_SIZE + 1)), 1009),
        (frame(TEXT, b"a" * 60000, fin=False) + frame(CONT, b"a" * 60000), 1009),
        (struct.pack("!BBQ", 0x81, 0xFF, 2**62), 1009),
        (frame(BINARY, b"\0"), 1003),
        (frame(BINARY, b"\0", fin=False) + frame(CONT, b"\0"), 1003),
        (frame(TEXT, b"no mask", masked=False), 1002),
        (frame(3, b"reserved"), 1002),
        (b"\xc1\x80\0\0\0\0", 1002),
        (frame(CONT, b"of nothing"), 1002),
        (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
        (frame(PING, b"a" * 126), 1002),
        (frame(PING, b"a", fin=False), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, struct.pack("!H", 1005)), 1002),
        (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
    ],
)
async def test_bad_frames_close_with_their_code(data: bytes, code: int) -> None:
    async with connected() as client:
        await client.head()
        await client.send(data)
        assert await client.close_code() == code


async def test_closes_are_answered_and_begun() -> None:
    async with connected() as client:
        await client.head()
        await client.send(frame(CLOSE, struct.pack("!H", 1001) + b"bye"))
        assert await client.close_code() == 1001
    async with connected() as client:
        await client.head()
        await client.send(frame(TEXT, b"restart"))
        assert await client.frame() == (CLOSE, struct.pack("!H", 1012) + b"restart")
        await client.send(frame(CLOSE, struct.pack("!H", 1012)))
        with pytest.raises(EOFError):
            await client.take(1)


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"sec-websocket-version: 13", b"sec-websocket-version: 8", b"400"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"short", b"400"),
        (b"upgrade: websocket", b"upgrade: h2c", b"426"),
        (b"GET /", b"POST /", b"400"),
    ],
)
async def test_bad_handshakes_are_plain_http(old: bytes, new: bytes, status: bytes) -> None:
    async with connected(HANDSHAKE.replace(old, new)) as client:
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 " + status)
        assert b"content-type: application/json" in head
