"""The judges of the fuzzers see what must not be, and their cases come again with their seed."""

from __future__ import annotations

import random
import struct

import pytest

from tools.attack import frames, orders, requests
from tools.attack.frames import Reader, frame


def test_cases_are_functions_of_the_seed() -> None:
    for make in (requests.request, frames.burst):
        first, again = ([make(rng, "m") for _ in range(200)] for rng in (random.Random(3), random.Random(3)))
        assert first == again and len({str(case) for case in first}) > 150
    first, again = ([orders.order(rng) for _ in range(200)] for rng in (random.Random(3), random.Random(3)))
    assert first == again


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.1 501 Not Implemented\r\n\r\n", ""),
        (b"HTTP/1.1 400 Bad Request\r\n\r\nHTTP/1.1 500 Internal Server Error\r\n\r\n", "status 500"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "status 503"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\nTraceback (most recent", "b'Traceback'"),
        (b"", ""),
    ],
)
def test_an_answer_is_judged(answer: bytes, wrong: str) -> None:
    assert requests.judge(answer).endswith(wrong) and bool(requests.judge(answer)) is bool(wrong)


def served(opcode: int, data: bytes) -> bytes:
    """A frame as a server sends it: without mask."""
    size = bytes((len(data),)) if len(data) < 126 else struct.pack("!BH", 126, len(data))
    return bytes((0x80 | opcode,)) + size + data


def test_frames_are_judged_however_they_arrive() -> None:
    failure = b'{"type":"error","status":500,"error":{}}'
    said = served(frames.TEXT, b"{}" * 100) + served(frames.TEXT, failure) + served(frames.PONG, b"7")
    for size in (1, 3, len(said)):
        reader = Reader()
        found = [reader.feed(said[at : at + size], b"7") for at in range(0, len(said), size)]
        assert found[-1] and not any(found[:-1]) and "500" in reader.wrong
    reader = Reader()
    assert reader.feed(served(frames.CLOSE, struct.pack("!H", 1002)), b"") and not reader.wrong
    assert reader.closed == 1002
    assert Reader().feed(served(frames.CLOSE, b""), b"")
    reader.feed(served(frames.CLOSE, struct.pack("!H", 1011)), b"")
    assert reader.wrong


def test_frames_are_whole_and_masked() -> None:
    assert frame(1, b"ab", mask=b"\1\2\3\4") == b"\x81\x82\1\2\3\4" + bytes((ord("a") ^ 1, ord("b") ^ 2))
    assert frame(1, bytes(126))[:4] == b"\x81\xfe\0\x7e" and frame(1, bytes(65536))[:2] == b"\x81\xff"


def test_an_administrators_answer_is_judged() -> None:
    assert orders.judge({"ok": True}) == orders.judge({"ok": False, "code": "usage"}) == ""
    assert "KeyError" in orders.judge({"ok": False, "code": "internal", "error": "KeyError: 'x'"})


def test_every_verb_is_attacked_by_its_own_words() -> None:
    assert orders.HELD.keys() <= orders.VERBS.keys()
    assert {"path", "name"} <= set(orders.FIELDS["lora.load"][0]) and "timeout" in orders.FIELDS[
        "engine.wake"
    ][1]
    rng = random.Random(1)
    for verb in orders.VERBS:
        held = orders.HELD.get(verb, {})
        for _ in range(50):
            fields = orders.request(rng, verb)
            assert fields["verb"] == verb
            assert all(repr(fields[name]) in map(repr, values) for name, values in held.items())
