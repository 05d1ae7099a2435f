"""Fuzzed WebSocket frames: any event in a good frame, any frame, and damage to both. Sans-I/O."""

from __future__ import annotations

import random
import struct

from tools.attack.grammar import damaged, text_of, varied

HANDSHAKE = (
    b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
INTERNAL_ERROR = 1011
_EVENTS = (
    {"type": "response.create", "input": "a", "max_output_tokens": 2, "stream_id": "x"},
    {"type": "response.create", "input": "a", "max_output_tokens": 2, "store": False},
    {"type": "response.create", "input": "a", "generate": False},
    {"type": "response.resume", "response_id": "resp_1_2", "starting_after": 3},
    {"type": "response.cancel", "response_id": "resp_1_2"},
    {"type": "response.steer", "previous_response_id": "resp_1_2", "input": "b"},
)
_CLOSES = (0, 999, 1000, 1001, 1004, 1005, 1006, 1007, 1015, 2999, 3000, 4999, 65535)


def frame(opcode: int, data: bytes, *, fin: bool = True, reserved: int = 0, mask: bytes = bytes(4)) -> bytes:
    """One frame of a client."""
    size = len(data)
    length = struct.pack("!BQ", 0xFF, size)
    if size < 65536:
        length = bytes((0x80 | size,)) if size < 126 else struct.pack("!BH", 0xFE, size)
    hidden = data if not any(mask) else bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
    return bytes((fin << 7 | reserved << 4 | opcode,)) + length + mask + hidden


def burst(rng: random.Random, model: str) -> tuple[bytes, int]:
    """What a client says in one go, and of how many frames it is."""
    count = rng.randrange(1, 9)
    return b"".join(_one(rng, model) for _ in range(count)), count


def _one(rng: random.Random, model: str) -> bytes:
    kind = rng.randrange(40)
    if kind < 30:
        return frame(TEXT, _event(rng, model), mask=rng.randbytes(4) if kind < 5 else bytes(4))
    if kind < 33:
        return frame(rng.choice((PING, PONG)), rng.randbytes(rng.randrange(126)))
    if kind < 36:
        text = _event(rng, model)
        cut = rng.randrange(len(text) + 1)
        between = frame(PING, b"between") if kind == 34 else b""
        return frame(TEXT, text[:cut], fin=False) + between + frame(0, text[cut:])
    match kind:
        case 36:
            return frame(CLOSE, struct.pack("!H", rng.choice(_CLOSES)) + rng.randbytes(rng.randrange(9)))
        case 37:
            data = rng.randbytes(rng.randrange(200))
            return frame(rng.randrange(16), data, fin=rng.random() < 0.7, reserved=rng.randrange(8))
        case 38:
            return damaged(rng, frame(TEXT, _event(rng, model)))
        case _:
            return struct.pack("!BBQ", rng.choice((0x81, 0x82, 0x88)), 0xFF, rng.choice((2**62, 2**63, 5)))


def _event(rng: random.Random, model: str) -> bytes:
    return text_of(rng, varied(rng, {"model": model, **rng.choice(_EVENTS)}))


class Reader:
    """What the server says: frames, as they become whole."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.closed: int | None = None
        self.wrong = ""

    def feed(self, data: bytes, sign: bytes) -> bool:
        """Take bytes in; whether a pong with `sign`, or a close, is among what they complete."""
        self._data += data
        found = False
        while (size := self._whole()) is not None:
            start = {126: 4, 127: 10}.get(self._data[1], 2)
            opcode, body = self._data[0] & 15, bytes(self._data[start:size])
            del self._data[:size]
            found |= self._take(opcode, body, sign)
        return found

    def _whole(self) -> int | None:
        """Bytes of the first frame; None while it is not whole."""
        data = self._data
        if len(data) < 2 or len(data) < (start := {126: 4, 127: 10}.get(data[1], 2)):
            return None
        size = start + (int.from_bytes(data[2:start], "big") if start > 2 else data[1])
        return size if len(data) >= size else None

    def _take(self, opcode: int, body: bytes, sign: bytes) -> bool:
        if opcode == CLOSE:
            self.closed = int.from_bytes(body[:2], "big") if body else 0
            if self.closed == INTERNAL_ERROR:
                self.wrong = f"closed with {INTERNAL_ERROR}"
            return True
        if opcode == TEXT and (b'"status":500' in body or b"internal_error" in body or b"Traceback" in body):
            self.wrong = body[:300].decode(errors="replace")
        return opcode == PONG and body == sign
