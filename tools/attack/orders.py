"""Fuzzed frames of the admin socket: any verb with any fields, any msgpack, and damage to frames. Sans-I/O.

Verbs come from the company's own tables, and the fields that each may take from the words in its source: a
verb that is added is attacked from then on.
"""

from __future__ import annotations

import ast
import inspect
import random
import struct
import textwrap
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any

import msgspec

from actors.control import fields as common
from actors.control import table
from runtime import verbs
from runtime.admin import LIMIT
from tools.attack.grammar import damaged, value

VERBS = {**verbs.VERBS, **table.VERBS}
_STRANGERS = ("dance", "", "status ", "STATUS", "__class__", "a" * 5000)
_NAN = float("nan")
_NO_TEXT = ("?", "", 5, None, ["executor.0"])
_NO_SECONDS: tuple[Any, ...] = ("?", -1, _NAN, 1e300, True, [])
HELD: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "stop": {"now": ("?", 1, [], {})},
    "actor.kill": {"name": _NO_TEXT},
    "actor.restart": {"name": _NO_TEXT},
    "engine.pause": {"mode": ("?", 5, [], True)},
    "engine.sleep": {"mode": ("?", 5, [], True)},
    "engine.drain": {"timeout": _NO_SECONDS},
    "engine.slow-down": {"seconds": (0, 0.001, *_NO_SECONDS)},
    "memory.release": {"tags": ("?", ["?"], 5, {})},
    "request.abort": {"all": (False, "?", 1)},
    "weights.update": {"dry_run": (True, "?")},
    "weights.tensors": {"dry_run": (True, "?")},
    "watch": {"looks": (1, 2), "interval": (0.1, *_NO_SECONDS)},
    "logs.read": {"follow": (False, "?", 1)},
    "trace.record": {"seconds": (0.1, *_NO_SECONDS)},
}
"""Verbs that would rightly disturb others, or take for ever, and the values that one field of each is held
to: they are refused, or end soon."""
_PLAUSIBLE = (
    "keep", "wait", "abort", "in_place", "gloo", "localhost", "executor.0", "frontend.0", "debug", "default",
    "/", "/etc", "/dev/zero", "/proc/self/mem", "a" * 300, "/" + "a" * 300, 0, 0.05, 1, 2, 8, True, False,
    ["a"], [[1]], ["F32"],
)  # fmt: skip
_RAW = (
    b"\xc1", b"\x80\x04\x95\x1a\x00\x00\x00.", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 100_000,
    b"\x81\xa4verb" + b"\x81\xa1a" * 50_000, b"\x81\xa1\xff\xc0", b"\xc9\xff\xff\xff\xff\x05",
    b"\xd8\x01" + bytes(16), b"\x82\xa4verb\xa6status\xa4verb\xa4tree", b"",
)  # fmt: skip


def _words(source: FunctionType | ModuleType) -> tuple[str, ...]:
    """The texts in it that could be a field's name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(source)))
    texts = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return tuple(sorted(text for text in texts if text.isidentifier() and text.islower()))


def _vocabulary(verb: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of a verb, and what it shares: its module's with others of its subject, `fields`'s with all."""
    module = inspect.getmodule(verb)
    assert module is not None
    return _words(verb), (*_words(module), *_words(common))


FIELDS = {name: _vocabulary(verb) for name, verb in VERBS.items()}


def order(rng: random.Random) -> tuple[bytes, bool]:
    """The next frame, and whether its length is true, so that an answer or the connection's end comes."""
    match rng.randrange(10):
        case 0:
            return _framed(rng.choice(_RAW)), True
        case 1:
            length = rng.choice((0, 1, LIMIT, LIMIT + 1, 2**31, 2**32 - 1))
            return struct.pack(">I", length) + rng.randbytes(rng.randrange(64)), False
        case 2:
            return damaged(rng, _framed(_packed(_stranger(rng)))), False
        case 3:
            return _framed(rng.randbytes(rng.randrange(200))), True
        case 4:
            return _framed(_packed(_stranger(rng))), True
        case _:
            return _framed(_packed(request(rng, rng.choice(tuple(VERBS))))), True


def request(rng: random.Random, verb: str) -> dict[str, Any]:
    """A verb with fields of any value."""
    fields: dict[str, Any] = {}
    own, shared = FIELDS[verb]
    for _ in range(rng.randrange(6)):
        names = own if own and rng.random() < 0.8 else (*shared, "x", "more", "ok")
        plausible = rng.random() < 0.4
        fields[rng.choice(names)] = rng.choice(_PLAUSIBLE) if plausible else value(rng, 2)
    held = {name: rng.choice(values) for name, values in HELD.get(verb, {}).items()}
    return {**fields, **held, "verb": verb}


def _framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _stranger(rng: random.Random) -> dict[str, Any]:
    """A map with anything that is no verb, so that no damage makes one of it that disturbs others."""
    verb: Any = rng.choice(_STRANGERS) if rng.random() < 0.5 else value(rng)
    return {"verb": verb, **{name: value(rng, 2) for name in ("name", "timeout")[: rng.randrange(3)]}}


def _packed(fields: dict[str, Any]) -> bytes:
    try:
        return msgspec.msgpack.encode(fields)
    except (UnicodeEncodeError, OverflowError, msgspec.MsgspecError):  # what msgpack has no form for
        return msgspec.msgpack.encode({"verb": "dance"})


def judge(answer: dict[str, Any]) -> str:
    """What is wrong with an answer, "" for nothing: a verb that broke where it should have refused."""
    if answer.get("ok") or answer.get("code") in ("usage", "not_found", "conflict", "failed", "timeout"):
        return ""
    return f"{answer.get('code')}: {answer.get('error')}"
