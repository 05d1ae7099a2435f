"""Fuzzed frames of the admin socket: any msgpack in a good frame, and damage to frames. Sans-I/O."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgspec

from runtime.admin import LIMIT
from tools.attack.grammar import damaged, value

_HARMLESS = ("status", "tree", "keys.list", "keys.reload")
"""Verbs that may be carried out."""
_REFUSED = ("actor.kill", "actor.restart", "dance", "", "status ", "STATUS", "__class__", "a" * 5000)
"""Verbs that no fuzzed argument makes sense with."""
_RAW = (
    b"\xc1", b"\x80\x04\x95\x1a\x00\x00\x00.", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 100_000,
    b"\x81\xa4verb" + b"\x81\xa1a" * 50_000, b"\x81\xa1\xff\xc0", b"\xc9\xff\xff\xff\xff\x05",
    b"\xd8\x01" + bytes(16), b"\x82\xa4verb\xa6status\xa4verb\xa4tree", b"",
)  # fmt: skip


def order(rng: random.Random) -> tuple[bytes, bool]:
    """The next frame, and whether its length is true, so that an answer or the connection's end comes."""
    match rng.randrange(10):
        case 0:
            return _framed(rng.choice(_RAW)), True
        case 1:
            length = rng.choice((0, 1, LIMIT, LIMIT + 1, 2**31, 2**32 - 1))
            return struct.pack(">I", length) + rng.randbytes(rng.randrange(64)), False
        case 2:
            return damaged(rng, _framed(_request(rng))), False
        case 3:
            return _framed(rng.randbytes(rng.randrange(200))), True
        case _:
            return _framed(_request(rng)), True


def _framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _request(rng: random.Random) -> bytes:
    """A map with a verb and anything else."""
    verb: Any = rng.choice(_HARMLESS if rng.random() < 0.3 else _REFUSED)
    if rng.random() < 0.1:
        verb = value(rng)
    fields = {"verb": verb}
    for _ in range(rng.randrange(4)):
        fields[rng.choice(("name", "now", "timeout", "x", "verb2", "more", "ok"))] = value(rng, 2)
    return _packed(fields)


def _packed(fields: dict[str, Any]) -> bytes:
    try:
        return msgspec.msgpack.encode(fields)
    except (UnicodeEncodeError, OverflowError, msgspec.MsgspecError):  # what msgpack has no form for
        return msgspec.msgpack.encode({"verb": "dance"})


def judge(answer: dict[str, Any]) -> str:
    """What is wrong with an answer, "" for nothing: a verb that failed where it should have refused."""
    if answer.get("ok"):
        return ""
    code = answer.get("code")
    return "" if code in ("usage", "not_found", "conflict") else f"{code}: {answer.get('error')}"
