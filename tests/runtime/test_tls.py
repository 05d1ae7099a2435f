"""TLS below HTTP and WebSocket: real clients, half handshakes, nonsense, and what the options refuse.

The key in `tls/` protects nothing: it is for these tests alone.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
import ssl
from collections.abc import AsyncIterator

import pytest
import structlog
import trio
import trio.testing

from protocols.config import Config, ModelCard
from protocols.errors import StartError
from runtime.exchange import Exchange, Handler
from runtime.http import HttpServer
from runtime.occupancy import Limits
from runtime.tls import server_context
from runtime.websocket import WebSocket
from tests.patience import PATIENCE

FILES = pathlib.Path(__file__).parent / "tls"
CERT, KEY = str(FILES / "cert.pem"), str(FILES / "key.pem")
CARD = ModelCard("m", "", "", 10, 10, ())
HELLO = b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
BIG = 3_000_000


def config(cert: str = CERT, key: str = KEY) -> Config:
    return Config(CARD, tls_cert=cert, tls_key=key)


async def answer(exchange: Exchange) -> None:
    if exchange.head.upgrades:
        web = WebSocket.accept(exchange, 1 << 20)
        while (message := await web.receive()) is not None:
            web.send_nowait([message.encode()])
        await web.close(1000)
    elif exchange.head.path == "/big":
        await exchange.respond(200, bytes(BIG), kind="text/plain")
    else:
        await exchange.respond(200, await exchange.body() or b"hello", kind="text/plain")


@contextlib.asynccontextmanager
async def serving(handler: Handler = answer, limits: Limits | None = None) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        limits = limits or Limits()
        server = HttpServer(handler, limits, structlog.get_logger(), server_context(config()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listener)
            with trio.fail_after(PATIENCE):
                yield listener.getsockname()[1]
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def connected(
    port: int, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    context = ssl.create_default_context(cafile=CERT)
    context.maximum_version = version
    async with await trio.open_tcp_stream("127.0.0.1", port) as raw:
        stream = trio.SSLStream(raw, context, server_hostname="127.0.0.1")
        await stream.do_handshake()
        yield stream


async def to_end(stream: trio.SSLStream[trio.SocketStream]) -> bytes:
    """Everything up to a clean goodbye: an SSLStream refuses an end without one."""
    data = bytearray()
    async for piece in stream:
        data += piece
    return bytes(data)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_requests_in_both_versions(version: ssl.TLSVersion) -> None:
    async with serving() as port, connected(port, version) as stream:
        body = bytes(500_000)
        await stream.send_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\n\r\n" + body + HELLO)
        data = await to_end(stream)
        assert data.count(b"HTTP/1.1 200") == 2 and body in data and data.endswith(b"hello")


async def test_an_answer_larger_than_the_socket_takes() -> None:
    async with serving() as port, connected(port) as stream:
        await stream.send_all(b"GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert (await to_end(stream)).endswith(b"\r\n\r\n" + bytes(BIG))


async def test_websocket() -> None:
    async with serving() as port, connected(port) as stream:
        await stream.send_all(
            b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            b"\x81\x82\0\0\0\0hi"
        )
        data = b""
        while b"\x81\x02hi" not in data:
            data += await stream.receive_some(4096)
        await stream.send_all(b"\x88\x82\0\0\0\0\x03\xe8")
        assert (await to_end(stream)).endswith(b"\x88\x02\x03\xe8")


NONSENSE = {
    "plain http": HELLO,
    "noise": bytes(range(256)) * 40,
    "a broken record": b"\x16\x03\x01\x00\x05hello",
    "a half hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "silence": b"",
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_and_half_handshakes_disturb_nobody(name: str) -> None:
    async with serving(limits=Limits(head_seconds=1.0)) as port:
        bad = await trio.open_tcp_stream("127.0.0.1", port)
        if NONSENSE[name]:
            await bad.send_all(NONSENSE[name])
        async with connected(port) as good:
            await good.send_all(HELLO)
            assert (await to_end(good)).endswith(b"hello")
        with contextlib.suppress(trio.BrokenResourceError):
            while await bad.receive_some(4096):
                pass
        await bad.aclose()


async def test_old_versions_are_refused() -> None:
    async with serving() as port:
        context = ssl.create_default_context(cafile=CERT)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        raw = await trio.open_tcp_stream("127.0.0.1", port)
        stream = trio.SSLStream(raw, context, server_hostname="127.0.0.1")
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await raw.aclose()


def test_what_is_no_certificate(tmp_path: pathlib.Path) -> None:
    assert server_context(Config(CARD)) is None
    noise = tmp_path / "noise.pem"
    noise.write_text("nothing")
    for cert, key, sentence in (
        (str(tmp_path / "none.pem"), KEY, "cannot read the certificate"),
        (str(noise), KEY, "holds no certificate"),
        (CERT, str(noise), "holds no certificate"),
        (CERT, "", "holds no certificate"),
    ):
        with pytest.raises(StartError, match=sentence):
            server_context(config(cert, key))
