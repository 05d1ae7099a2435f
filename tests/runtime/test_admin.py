"""The admin socket: frames, verbs, refusals, and what strangers and broken clients get."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import struct
import uuid
from collections.abc import AsyncIterator

import msgspec
import pytest
import structlog
import trio

from runtime import admin, frames
from runtime.admin import Reply, Request, Send, VerbError
from tests.patience import PATIENCE


async def _echo(request: Request, _more: Send) -> Reply:
    return {"said": request.get("text")}


async def _count(request: Request, more: Send) -> Reply:
    for i in range(3):
        await more({"i": i})
    return {"total": 3}


async def _refuse(_request: Request, _more: Send) -> Reply:
    raise VerbError("conflict", "not now.")


async def _fail(_request: Request, _more: Send) -> Reply:
    return {"done": {}["nothing"]}


async def _flood(_request: Request, more: Send) -> Reply:
    while True:
        await more({"text": "x" * 60_000})


VERBS = {"echo": _echo, "count": _count, "refuse": _refuse, "fail": _fail, "flood": _flood}


@contextlib.asynccontextmanager
async def _serving(address: str) -> AsyncIterator[str]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(admin.native(address))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(admin.Server(listener, VERBS, structlog.get_logger()).run)
            yield address
            nursery.cancel_scope.cancel()


def _abstract() -> str:
    return admin.address(f"test-{uuid.uuid4().hex}")


async def test_a_verb_answers() -> None:
    async with _serving(_abstract()) as address:
        assert await admin.call(address, {"verb": "echo", "text": "hello"}) == {"said": "hello"}


async def test_a_verb_streams() -> None:
    seen: list[Reply] = []
    async with _serving(_abstract()) as address:
        assert await admin.call(address, {"verb": "count"}, seen.append) == {"total": 3}
    assert seen == [{"i": 0}, {"i": 1}, {"i": 2}]


async def test_a_refusal_has_a_code_and_a_sentence() -> None:
    async with _serving(_abstract()) as address:
        with pytest.raises(VerbError, match=r"not now\.") as refusal:
            await admin.call(address, {"verb": "refuse"})
        assert refusal.value.code == "conflict"


async def test_a_verb_that_fails_is_answered_and_ends_nothing() -> None:
    async with _serving(_abstract()) as address:
        with pytest.raises(VerbError, match="KeyError: 'nothing'") as failure:
            await admin.call(address, {"verb": "fail"})
        assert failure.value.code == "internal"
        assert await admin.call(address, {"verb": "echo", "text": "still here"}) == {"said": "still here"}


async def test_who_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "PATIENCE", 0.1)
    monkeypatch.setattr(admin, "CONNECTIONS", 1)
    async with (
        _serving(_abstract()) as address,
        await trio.open_unix_socket(admin.native(address)) as stream,
    ):
        await admin.send_frame(stream, {"verb": "flood"})
        with trio.fail_after(PATIENCE):
            assert await admin.call(address, {"verb": "echo", "text": "x"}) == {"said": "x"}


@pytest.mark.parametrize("verb", ["dance", "", None, 7, ["echo"]])
async def test_an_unknown_verb(verb: object) -> None:
    async with _serving(_abstract()) as address:
        with pytest.raises(VerbError, match=r"there is no verb .*; there are count, echo, fail") as refusal:
            await admin.call(address, {"verb": verb})  # type: ignore[dict-item]
        assert refusal.value.code == "usage"


async def test_several_requests_in_one_connection() -> None:
    async with _serving(_abstract()) as address:
        stream = await trio.open_unix_socket(admin.native(address))
        async with stream:
            for text in ("a", "b"):
                await admin.send_frame(stream, {"verb": "echo", "text": text})
                reply = await frames.receive(stream, admin.LIMIT)
                assert reply is not None
                assert msgspec.msgpack.decode(reply) == {"ok": True, "said": text}


async def test_nobody_there() -> None:
    with pytest.raises(admin.Unreachable, match=r"no company named test-\w+ is running"):
        await admin.call(_abstract(), {"verb": "status"})


async def test_no_such_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(admin.Unreachable, match="No such file"):
        await admin.call(str(tmp_path / "none.sock"), {"verb": "status"})


def test_for_programs_without_trio() -> None:
    with pytest.raises(admin.Unreachable):
        admin.ask(_abstract(), {"verb": "status"})


def test_a_company_that_does_not_answer() -> None:
    address = _abstract()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(admin.native(address))
        listener.listen()
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.05 s"):
            admin.ask(address, {"verb": "status"}, timeout=0.05)


async def test_a_company_that_ends_meanwhile() -> None:
    address = _abstract()
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(admin.native(address))
        listener.listen()

        async def hang_up() -> None:
            connection, _ = await listener.accept()
            connection.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up)
            with pytest.raises(admin.Unreachable, match="broke off"):
                await admin.call(address, {"verb": "status"})


def _deep(levels: int) -> bytes:
    return b"\x81\xa4verb" + b"\x91" * levels + b"\xc0"


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", admin.LIMIT + 1),
        struct.pack(">I", 2**32 - 1) + b"x" * 100,
        struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
        struct.pack(">I", 2) + b"\x91\x01",
        struct.pack(">I", len(_deep(3))) + _deep(3),
        struct.pack(">I", len(_deep(100_000))) + _deep(100_000),
        struct.pack(">I", 3) + b"\x81\xa1\xff",
    ],
    ids=["too long", "absurdly long", "no msgpack", "no map", "too deep", "absurdly deep", "bad text"],
)
async def test_who_does_not_keep_to_the_protocol_is_dropped(data: bytes) -> None:
    async with _serving(_abstract()) as address:
        async with await trio.open_unix_socket(admin.native(address)) as stream:
            await stream.send_all(data)
            with contextlib.suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
        assert await admin.call(address, {"verb": "echo", "text": "still here"}) == {"said": "still here"}


async def test_half_a_frame_is_dropped() -> None:
    async with _serving(_abstract()) as address:
        async with await trio.open_unix_socket(admin.native(address)) as stream:
            await stream.send_all(struct.pack(">I", 10) + b"abc")
            await stream.send_eof()
            assert await stream.receive_some() == b""
        assert await admin.call(address, {"verb": "echo", "text": "x"}) == {"said": "x"}


def test_only_the_owner_and_root_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert admin.is_trusted(1000)
    assert admin.is_trusted(0)
    assert not admin.is_trusted(1001)
    assert admin.address("x") == "@troupe-1000-x"
    assert admin.address("x", "/run/x.sock") == "/run/x.sock"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a moment")
async def test_a_stranger_gets_nothing() -> None:
    """Another user connects to the abstract name, which everybody can see."""
    async with _serving(_abstract()) as address:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        os.seteuid(65534)
        try:
            await sock.connect(admin.native(address))
        finally:
            os.seteuid(0)
        async with trio.SocketStream(sock) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await admin.send_frame(stream, {"verb": "echo", "text": "let me in"})
                assert await stream.receive_some() == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a moment")
async def test_a_strangers_company_is_not_believed() -> None:
    """Whoever has taken the name first is asked nothing unless it is this user's."""
    address = _abstract()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(admin.native(address))
        os.seteuid(65534)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(admin.Unreachable, match=r"belongs to another user \(uid 65534\)"):
            await admin.call(address, {"verb": "status"})
