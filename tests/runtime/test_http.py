"""The HTTP server over real sockets: framing, limits, deadlines, keep-alive, disconnects, stopping."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator

import pytest
import structlog
import trio

from protocols.errors import UserError
from runtime.exchange import Exchange, Handler
from runtime.http import HttpServer
from runtime.occupancy import Limits
from tests.patience import PATIENCE

PATIENT = Limits(head_seconds=PATIENCE, idle_seconds=PATIENCE, body_seconds=PATIENCE, body_bytes=1000)


@dataclasses.dataclass
class Served:
    server: HttpServer
    port: int
    done: trio.Event

    async def talk(self, data: bytes, *, hang_up: bool = False) -> bytes:
        """Send bytes, return all that comes until the server closes."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                if hang_up:
                    await stream.send_eof()
            answer = bytearray()
            with trio.fail_after(PATIENCE), contextlib.suppress(trio.BrokenResourceError):
                async for piece in stream:
                    answer += piece
            return bytes(answer)


async def echo(exchange: Exchange) -> None:
    body = await exchange.body()
    await exchange.respond(200, b"%s %s|" % (exchange.head.path.encode(), body), kind="text/plain")


@contextlib.asynccontextmanager
async def serving(handler: Handler = echo, limits: Limits = PATIENT) -> AsyncIterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HttpServer(handler, limits, structlog.get_logger())
        served = Served(server, listener.getsockname()[1], trio.Event())

        async def run() -> None:
            await server.serve(listener)
            served.done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield served
            nursery.cancel_scope.cancel()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> dict[str, object]:
    document: dict[str, dict[str, object]] = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert b"x-request-id: req_" in answer
    return document["error"]


async def test_keep_alive_pipelining_and_close() -> None:
    async with serving() as s:
        answer = await s.talk(
            b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\none"
            b"GET /b HTTP/1.1\r\nhost: x\r\n\r\n"
            b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\ntw\r\n1\r\no\r\n0\r\n\r\n"
            b"GET /d HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        assert [part.partition(b"|")[0] for part in answer.split(b"\r\n\r\n")[1:]] == [
            b"/a one",
            b"/b ",
            b"/c two",
            b"/d ",
        ]


async def test_http_1_0_is_answered_and_closed() -> None:
    async with serving() as s:
        assert (await s.talk(b"GET /old HTTP/1.0\r\n\r\n")).endswith(b"/old |")


async def test_head_has_no_body() -> None:
    async with serving() as s:
        answer = await s.talk(b"HEAD /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert status(answer) == 200 and answer.endswith(b"\r\n\r\n")
        assert b"content-length: 4" in answer


@pytest.mark.parametrize(
    ("target", "path"), [("http://other/a/b?c", "/a/b"), ("HTTPS://other", "/"), ("http://other?c", "/")]
)
async def test_a_target_with_its_host(target: str, path: str) -> None:
    """As a client writes it to a proxy: the host is the target's, whatever the header says."""
    seen: list[tuple[str, str, str]] = []

    async def look(exchange: Exchange) -> None:
        head = exchange.head
        seen.append((head.path, head.query, head.value("host")))
        await exchange.respond(204, b"")

    async with serving(look) as served:
        await served.talk(f"GET {target} HTTP/1.1\r\nhost: mine\r\nconnection: close\r\n\r\n".encode())
    assert seen == [(path, target.partition("?")[2], "other")]


@pytest.mark.parametrize(
    ("coding", "status"), [(b"identity", b"200"), (b"gzip", b"415"), (b"Identity, br", b"415")]
)
async def test_compressed_bodies_are_refused(coding: bytes, status: bytes) -> None:
    async with serving() as served:
        head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 1\r\n"
        assert (await served.talk(head + b"content-encoding: " + coding + b"\r\n\r\nx"))[9:12] == status


async def test_expect_100_continue() -> None:
    async with serving() as s:
        answer = await s.talk(
            b"POST /e HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n"
            b"connection: close\r\n\r\nhi"
        )
        assert answer.startswith(b"HTTP/1.1 100 ") and answer.endswith(b"/e hi|")


BAD_HEADS = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    "bad version": (b"GET / HTTP/3.0\r\nhost: x\r\n\r\n", 505),
    "bad length": (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
    "two framings": (
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "unknown coding": (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 501),
    "space in name": (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400),
    "control character": (b"GET / HTTP/1.1\r\nhost: x\r\na: b\x00c\r\n\r\n", 400),
    "endless headers": (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20000, 431),
    "endless line": (b"GET /" + b"a" * 100_000, 431),
    "bad chunk": (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
}


@pytest.mark.parametrize("name", BAD_HEADS)
async def test_bad_framing_is_refused_and_closed(name: str) -> None:
    data, expected = BAD_HEADS[name]
    async with serving() as s:
        answer = await s.talk(data)
        assert status(answer) == expected
        assert error(answer)["type"] == "invalid_request_error"
        assert (await s.talk(b"GET /still HTTP/1.0\r\n\r\n")).endswith(b"/still |")


@pytest.mark.parametrize(
    "head",
    [b"content-length: 1001\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n3e9\r\n" + b"a" * 1001 + b"\r\n"],
)
async def test_too_large_a_body(head: bytes) -> None:
    async with serving() as s:
        answer = await s.talk(b"POST / HTTP/1.1\r\nhost: x\r\n" + head)
        assert status(answer) == 413
        assert error(answer)["code"] == "request_too_large"


async def test_a_body_in_flight_does_not_lose_the_refusal() -> None:
    async with serving() as s:
        answer = await s.talk(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n" + bytes(9_000_000)
        )
        assert status(answer) == 413


async def test_slow_head_and_slow_body_and_silence() -> None:
    async with serving(limits=dataclasses.replace(PATIENT, head_seconds=0.05)) as s:
        assert await s.talk(b"") == b""
    async with serving(limits=dataclasses.replace(PATIENT, head_seconds=1.0)) as s:
        assert status(await s.talk(b"GET / HT")) == 408
    async with serving(limits=dataclasses.replace(PATIENT, body_seconds=0.05)) as s:
        slow_body = await s.talk(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        assert status(slow_body) == 408
    async with serving(limits=dataclasses.replace(PATIENT, idle_seconds=0.05)) as s:
        idle = await s.talk(b"GET /one HTTP/1.1\r\nhost: x\r\n\r\n")
        assert idle.endswith(b"/one |")


async def test_an_answer_in_pieces() -> None:
    async def pieces(exchange: Exchange) -> None:
        exchange.start_nowait(200, kind="text/plain")
        for piece in (b"one", b"two", b"x" * 20):
            exchange.write_nowait(piece)
        await exchange.finish()

    async with serving(pieces) as s:
        answer = await s.talk(
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        assert answer.count(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n") == 2
        assert (await s.talk(b"GET / HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\nonetwo" + b"x" * 20)


async def test_a_vanished_client_cancels_its_handler() -> None:
    cancelled = trio.Event()

    async def wait(exchange: Exchange) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving(wait) as s:
        await s.talk(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", hang_up=True)
        with trio.fail_after(PATIENCE):
            await cancelled.wait()


async def test_a_bug_in_a_handler_is_a_500_and_nobody_elses() -> None:
    async def broken(exchange: Exchange) -> None:
        if exchange.head.path == "/bug":
            raise ZeroDivisionError
        await echo(exchange)

    async with serving(broken) as s:
        answer = await s.talk(
            b"GET /bug HTTP/1.1\r\nhost: x\r\n\r\nGET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        assert status(answer) == 500
        assert b"ZeroDivision" not in answer
        assert answer.endswith(b"/ok |")


async def test_user_errors_are_answers() -> None:
    async def refuse(exchange: Exchange) -> None:
        raise UserError("No.", status=503, retry_after=3)

    async with serving(refuse) as s:
        answer = await s.talk(b"GET / HTTP/1.0\r\n\r\n")
        assert status(answer) == 503 and b"retry-after: 3" in answer


async def test_stop_closes_the_silent_and_lets_the_others_finish() -> None:
    reached, go = trio.Event(), trio.Event()

    async def slow(exchange: Exchange) -> None:
        if exchange.head.path == "/slow":
            reached.set()
            await go.wait()
        await echo(exchange)

    async with serving(slow) as s:
        idle = await trio.open_tcp_stream("127.0.0.1", s.port)
        await idle.send_all(b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await idle.receive_some(4096)).endswith(b"/first |")
        busy = await trio.open_tcp_stream("127.0.0.1", s.port)
        await busy.send_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await reached.wait()
        s.server.stop()
        assert await idle.receive_some(4096) == b""
        assert not s.done.is_set()
        go.set()
        answer = await busy.receive_some(4096)
        assert answer.endswith(b"/slow |") and b"connection: close" in answer
        assert await busy.receive_some(4096) == b""
        with trio.fail_after(PATIENCE):
            await s.done.wait()
        await idle.aclose()
        await busy.aclose()


async def test_a_request_under_way_when_the_server_stops_is_served() -> None:
    async with serving(limits=dataclasses.replace(PATIENT, parting_seconds=PATIENCE)) as s:
        fresh = await trio.open_tcp_stream("127.0.0.1", s.port)
        kept = await trio.open_tcp_stream("127.0.0.1", s.port)
        await kept.send_all(b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await kept.receive_some(4096)).endswith(b"/first |")
        s.server.stop()
        for stream in (fresh, kept):
            await stream.send_all(b"GET /late HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = await stream.receive_some(4096)
            assert answer.endswith(b"/late |") and b"connection: close" in answer
            await stream.aclose()
        with trio.fail_after(PATIENCE):
            await s.done.wait()


async def test_connections_beyond_the_limit_wait_their_turn() -> None:
    reached, go = trio.Event(), trio.Event()

    async def slow(exchange: Exchange) -> None:
        if exchange.head.path == "/first":
            reached.set()
            await go.wait()
        await echo(exchange)

    async with serving(slow, limits=dataclasses.replace(PATIENT, max_connections=1)) as s:
        first = await trio.open_tcp_stream("127.0.0.1", s.port)
        await first.send_all(b"GET /first HTTP/1.0\r\n\r\n")
        await reached.wait()
        second = await trio.open_tcp_stream("127.0.0.1", s.port)
        await second.send_all(b"GET /second HTTP/1.0\r\n\r\n")
        with trio.move_on_after(0.05):
            await second.receive_some(4096)
            raise AssertionError("the second connection was served")
        go.set()
        assert (await first.receive_some(4096)).endswith(b"/first |")
        assert (await second.receive_some(4096)).endswith(b"/second |")
        await first.aclose()
        await second.aclose()


@pytest.mark.parametrize("said", [b"", b"GET /slow HTTP/1.1\r\nhost: x\r\na: "])
async def test_the_longest_silent_connection_gives_way(said: bytes) -> None:
    limits = Limits(head_seconds=600, idle_seconds=600, max_connections=2)
    async with serving(limits=limits) as s:
        kept = await trio.open_tcp_stream("127.0.0.1", s.port)
        await kept.send_all(b"GET /kept HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await kept.receive_some(4096)).endswith(b"/kept |")
        silent = await trio.open_tcp_stream("127.0.0.1", s.port)
        if said:
            await silent.send_all(said)
        assert (await s.talk(b"GET /new HTTP/1.0\r\n\r\n")).endswith(b"/new |")
        assert await kept.receive_some(4096) == b""
        assert (await s.talk(b"GET /newer HTTP/1.0\r\n\r\n")).endswith(b"/newer |")
        await silent.aclose()
        await kept.aclose()


async def test_all_bodies_together_are_bounded() -> None:
    limits = dataclasses.replace(PATIENT, body_bytes=1000, bodies_bytes=1500)
    head = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n"
    async with serving(limits=limits) as s:
        half = await trio.open_tcp_stream("127.0.0.1", s.port)
        await half.send_all(head + bytes(900))
        with trio.fail_after(PATIENCE):
            while s.server.occupancy.held < 900:
                await trio.sleep(0.001)
        answer = await s.talk(head + bytes(1000))
        assert status(answer) == 503 and b"retry-after: 1" in answer
        await half.send_all(bytes(100))
        assert status(await half.receive_some(65536)) == 200
        await half.aclose()
        assert status(await s.talk(head + bytes(1000))) == 200
