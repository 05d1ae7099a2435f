"""RFC 6455 case by case, in the groups that conformance suites for servers have: what is sent, what must
come.

Our server takes text and no binary messages (1003), echoes in these tests, and neither fragments nor
compresses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import socket
import struct
from collections.abc import Iterator

import pytest
import structlog
import trio

from runtime.http import HttpServer
from runtime.occupancy import Limits
from tests.patience import PATIENCE
from tests.runtime.test_websocket import (
    BINARY,
    CLOSE,
    CONT,
    HANDSHAKE,
    MAX_SIZE,
    PING,
    PONG,
    TEXT,
    Client,
    echo,
    frame,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """name, the bytes that are sent, and the frames that must come; then `end` is sent, and a close with
    `code` must come. chop: bytes of a write, 0 for all at once."""

    name: str
    data: bytes
    frames: tuple[tuple[int, bytes], ...] = ()
    code: int = 1000
    chop: int = 0
    end: bytes = b""


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def fragments(data: bytes, size: int, between: bytes = b"") -> bytes:
    """A text message in frames of `size` bytes, with `between` after each."""
    parts = [data[i : i + size] for i in range(0, len(data), size)] or [b""]
    last = len(parts) - 1
    frames = [frame(CONT if i else TEXT, part, fin=i == last) for i, part in enumerate(parts)]
    return between.join(frames)


def payloads() -> Iterator[Case]:
    for size in (0, 1, 125, 126, 127, 128, 65535, 65536):
        text = b"*" * size
        yield Case(f"text of {size}", frame(TEXT, text), ((TEXT, text),))
        yield Case(f"text of {size} in pieces", frame(TEXT, text), ((TEXT, text),), chop=997)
        yield Case(f"binary of {size}", frame(BINARY, text), code=1003)
    yield Case("binary in fragments", frame(BINARY, b"a", fin=False) + frame(CONT, b"b"), code=1003)


def pings() -> Iterator[Case]:
    for data in (b"", b"Hello", b"\x00\xff\xfe\xfd", b"\xfe" * 125):
        yield Case(f"ping of {len(data)}", frame(PING, data), ((PONG, data),))
        yield Case(f"ping of {len(data)} byte by byte", frame(PING, data), ((PONG, data),), chop=1)
    yield Case("ping of 126", frame(PING, b"\xfe" * 126), code=1002)
    yield Case("unsolicited pong", frame(PONG, b"x") + frame(PING, b"y"), ((PONG, b"y"),))
    yield Case("pong of 126", frame(PONG, b"\xfe" * 126), code=1002)
    ten = [f"payload {i}".encode() for i in range(10)]
    answers = tuple((PONG, data) for data in ten)
    yield Case("ten pings", b"".join(frame(PING, data) for data in ten), answers)
    yield Case("ten pings byte by byte", b"".join(frame(PING, data) for data in ten), answers, chop=1)


def reserved() -> Iterator[Case]:
    before = frame(TEXT, b"before")
    for bits, opcode in itertools.product(range(1, 8), (TEXT, CONT, CLOSE, PING, PONG)):
        bad = bytes([0x80 | bits << 4 | opcode, 0x80, 0, 0, 0, 0])
        yield Case(f"reserved bits {bits} in opcode {opcode}", before, ((TEXT, b"before"),), 1002, end=bad)
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield Case(f"opcode {opcode}", before, ((TEXT, b"before"),), 1002, end=frame(opcode, b""))
        yield Case(f"opcode {opcode} with data", frame(opcode, b"data") + frame(PING, b""), code=1002)
    yield Case("no mask", frame(TEXT, b"data", masked=False), code=1002)
    yield Case("a ping without mask", frame(PING, b"", masked=False), code=1002)


def fragmentation() -> Iterator[Case]:
    text, ping, pong = b"fragment one, fragment two", frame(PING, b"p"), (PONG, b"p")
    yield Case("a ping in fragments", frame(PING, b"a", fin=False) + frame(CONT, b"b"), code=1002)
    yield Case("a pong in fragments", frame(PONG, b"a", fin=False) + frame(CONT, b"b"), code=1002)
    yield Case("a close in fragments", frame(CLOSE, b"\x03\xe8", fin=False), code=1002)
    for size, chop in itertools.product((1, 5, 13, 26), (0, 1)):
        yield Case(f"fragments of {size}, chop {chop}", fragments(text, size), ((TEXT, text),), chop=chop)
    yield Case("a ping between", fragments(text, 13, ping), (pong, (TEXT, text)))
    yield Case("pings between", fragments(text, 5, ping), (pong,) * 5 + ((TEXT, text),))
    yield Case("empty fragments", fragments(b"", 1), ((TEXT, b""),))
    empty = frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) * 3 + frame(CONT, b"x")
    yield Case("empty fragments before", empty, ((TEXT, b"x"),))
    yield Case("a continuation of nothing", frame(CONT, b"x"), code=1002)
    yield Case("an unfinished one of nothing", frame(CONT, b"x", fin=False), code=1002)
    whole = fragments(text, 13)
    yield Case("one continuation too many", whole, ((TEXT, text),), 1002, end=frame(CONT, b"x"))
    yield Case("a text inside a text", frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), code=1002)
    yield Case("a binary inside a text", frame(TEXT, b"a", fin=False) + frame(BINARY, b"b"), code=1002)


GOOD_TEXTS = (
    "κόσμε", "Hello-µ@ßöäüàá-UTF-8!!", "\x00", "\x7f", "\x80", "\u07ff", "\u0800", "\uffff", "\U00010000",
    "\U0010ffff", "\ud7ff", "\ue000", "\ufffd", "\ufffe", "\ufdd0", "\U0001fffe", "\u200b", "𝄞" * 50,
)  # fmt: skip

BAD_TEXTS = (
    b"\x80", b"\xbf", b"\x80\xbf", b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x88\x80\x80\x80",
    b"\xfe", b"\xff", b"\xfc\x84\x80\x80\x80\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf",
    b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xed\xa0\x80", b"\xed\xaf\xbf",
    b"\xed\xbe\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf7\xbf\xbf\xbf",
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", b"a\xc3", b"\xe2\x82",
)  # fmt: skip


def utf8() -> Iterator[Case]:
    for text in GOOD_TEXTS:
        data = text.encode()
        yield Case(f"good {data!r:.40}", frame(TEXT, data), ((TEXT, data),))
        yield Case(f"good {data!r:.40} in fragments of 1", fragments(data, 1), ((TEXT, data),))
    for data in BAD_TEXTS:
        yield Case(f"bad {data!r:.40}", frame(TEXT, data), code=1007)
        yield Case(f"bad {data!r:.40} in fragments of 1", fragments(data, 1), code=1007)
    word = "κόσμε".encode()
    for end in range(1, len(word) + 1):
        good = word[:end].decode(errors="ignore").encode() == word[:end]
        answer = ((TEXT, word[:end]),) if good else ()
        yield Case(f"{end} bytes of a word", frame(TEXT, word[:end]), answer, 1000 if good else 1007)
    for code in (
        *range(0xFFF9, 0x10000),
        *(plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF)),
    ):
        data = chr(code).encode()
        yield Case(f"U+{code:04X}, which is no character", frame(TEXT, data), ((TEXT, data),))
    for high, low in itertools.product((0xD800, 0xDB7F, 0xDB80, 0xDBFF), (0xDC00, 0xDFFF)):
        data = (chr(high) + chr(low)).encode("utf-8", "surrogatepass")
        yield Case(f"the halves {high:X} {low:X}", frame(TEXT, data), code=1007)
    bad, good = b"\xf4\x90\x80\x80", word + b"edited"
    for place in range(len(bad)):
        start = frame(TEXT, good, fin=False) + frame(CONT, bad[: place + 1], fin=False)
        if place:
            yield Case(f"refused within a character, at byte {place}", start, code=1007)
    for data in (b"\xff", b"ok\xc0\x80", b"\xf5"):
        yield Case(f"bad {data!r} is not waited out", frame(TEXT, data, fin=False), code=1007)
    yield Case("half a character", frame(TEXT, b"\xe2\x82", fin=False) + frame(CONT, b"x"), code=1007)


def closes() -> Iterator[Case]:
    yield Case("a message, then a close", frame(TEXT, b"Hello"), ((TEXT, b"Hello"),))
    for name, after in {
        "a close": closing(1001),
        "a ping": frame(PING, b""),
        "a message": frame(TEXT, b"late"),
        "noise": b"\xff" * 300,
    }.items():
        yield Case(f"{name} after a close", closing(3000) + after, code=3000)
    yield Case("in the middle of a message", frame(TEXT, b"half", fin=False) + closing(1000), code=1002)
    yield Case("of one byte", frame(CLOSE, b"\x03"), code=1002)
    yield Case("with a reason", closing(4001, b"Hello World!"), code=4001)
    yield Case("with the longest reason", closing(4000, b"*" * 123), code=4000)
    yield Case("with too long a reason", closing(4000, b"*" * 124), code=1002)
    yield Case("with a reason that is no text", closing(4000, b"\xed\xa0\x80"), code=1007)
    for code in (1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        yield Case(f"with {code}", closing(code), code=code)
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        yield Case(f"with {code}", closing(code), code=1002)


def sizes() -> Iterator[Case]:
    text = b"BAsd7&jh23" * 6553 + b"123456"
    for size in (64, 256, 1024, 1300, 4096, 16384):
        yield Case(f"{len(text)} in fragments of {size}", fragments(text, size), ((TEXT, text),))
    for chop in (64, 1300, 4097, 65536):
        yield Case(f"{len(text)} in writes of {chop}", frame(TEXT, text), ((TEXT, text),), chop=chop)
    most = b"x" * MAX_SIZE
    yield Case("the largest", frame(TEXT, most), ((TEXT, most),))
    yield Case("one more", frame(TEXT, most + b"x"), code=1009)
    yield Case("one more in fragments", fragments(most + b"x", 9999), code=1009)
    yield Case("announced as far too large", struct.pack("!BBQ", 0x81, 0xFF, 2**62), code=1009)
    yield Case("longer than a length can be", struct.pack("!BBQ", 0x81, 0xFF, 2**63), code=1009)
    long_way = struct.pack("!BBQ", 0x81, 0xFF, 5) + bytes(4) + b"Hello"
    yield Case("a length in more bytes than it needs", long_way, ((TEXT, b"Hello"),))


def many() -> Iterator[Case]:
    for size in (0, 16, 64, 256, 1024, 4096):
        text = b"*" * size
        yield Case(f"1000 messages of {size}", frame(TEXT, text) * 1000, ((TEXT, text),) * 1000)
    yield Case("1000 pings", frame(PING, b"x") * 1000, ((PONG, b"x"),) * 1000)


GROUPS = {
    "payloads": payloads,
    "pings": pings,
    "reserved": reserved,
    "fragmentation": fragmentation,
    "utf8": utf8,
    "closes": closes,
    "sizes": sizes,
    "many": many,
}


async def play(case: Case, port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        client = Client(stream)
        await client.send(HANDSHAKE)
        await client.head()
        step, said = case.chop or len(case.data), trio.Event()

        async def say() -> None:
            for i in range(0, len(case.data), step):
                await client.send(case.data[i : i + step])
            said.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            for expected in case.frames:
                assert await client.frame() == expected
            await said.wait()
            await client.send(closing(1000) if case.code == 1000 else case.end)
            opcode, data = await client.frame()
            assert (opcode, struct.unpack("!H", data[:2])[0]) == (CLOSE, case.code)
            with contextlib.suppress(trio.BrokenResourceError), pytest.raises(EOFError):
                await client.take(1)


@pytest.mark.parametrize("group", GROUPS)
async def test_group(group: str) -> None:
    failed: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HttpServer(echo, Limits(), structlog.get_logger())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listener)
            for case in GROUPS[group]():
                try:
                    with trio.fail_after(PATIENCE):
                        await play(case, listener.getsockname()[1])
                except Exception as error:
                    failed.append(f"{case.name}: {error!r}")
            nursery.cancel_scope.cancel()
    assert not failed


async def test_a_close_without_a_code_is_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(HttpServer(echo, Limits(), structlog.get_logger()).serve, listener)
            async with await trio.open_tcp_stream("127.0.0.1", listener.getsockname()[1]) as stream:
                client = Client(stream)
                await client.send(HANDSHAKE + frame(CLOSE, b""))
                await client.head()
                with trio.fail_after(PATIENCE):
                    assert (await client.frame())[0] == CLOSE
            nursery.cancel_scope.cancel()


async def test_a_flood_of_the_smallest_frames_leaves_others_their_turns() -> None:
    """A hundred thousand empty fragments in one go: a neighbour is answered before they are all read."""
    flood = frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) * 100_000
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(HttpServer(echo, Limits(), structlog.get_logger()).serve, listener)
            with trio.fail_after(PATIENCE):
                async with await trio.open_tcp_stream("127.0.0.1", port) as bad:
                    await bad.send_all(HANDSHAKE)
                    flooded = trio.Event()

                    async def pour() -> None:
                        await bad.send_all(flood + frame(CONT, b"end"))
                        flooded.set()

                    nursery.start_soon(pour)
                    async with await trio.open_tcp_stream("127.0.0.1", port) as good:
                        client = Client(good)
                        await client.send(HANDSHAKE + frame(TEXT, b"hello"))
                        await client.head()
                        assert await client.frame() == (TEXT, b"hello")
                    await flooded.wait()
                    flooder = Client(bad)
                    await flooder.head()
                    assert await flooder.frame() == (TEXT, b"end")
            nursery.cancel_scope.cancel()
