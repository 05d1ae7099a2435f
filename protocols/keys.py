"""API keys: who may use a company, how much, and the file that says so.

    [limits]                      # of every key, unless its own table says otherwise; 0: none
    concurrency = 8               # choices open at once
    tokens_per_minute = 100000    # prompt and output together
    sockets = 4                   # WebSockets at once
    lanes = 8                     # named lanes of one WebSocket
    private_cache = false         # prefixes are shared only between requests of this key

    [keys.alice]
    sha256 = "64 hexadecimal digits"
    tokens_per_minute = 20000

    [keys.operator]
    sha256 = "..."
    admin = true                  # for the administrative routes, and only for those

A key is known by its SHA-256 alone. That is enough for what `actorctl keys add` makes (256 random bits cannot
be guessed, however fast the hash), and cheap enough to be computed once a request.
"""

from __future__ import annotations

import hashlib
import re
import tomllib

import msgspec

from protocols.errors import StartError

MAX_KEYS = 1024
MAX_FILE = 512 * 1024
"""Bytes of a key file."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class KeyLimits(msgspec.Struct, frozen=True):
    """What one key may do; 0: without limit."""

    concurrency: int = 0
    tokens_per_minute: int = 0
    sockets: int = 0
    lanes: int = 0
    private_cache: bool = False


class Key(msgspec.Struct, frozen=True):
    """One key. digest: SHA-256 of its text, in hexadecimal."""

    name: str
    digest: str
    admin: bool = False
    limits: KeyLimits = KeyLimits()


class Keyring(msgspec.Struct, frozen=True):
    """All keys of a company. needed: whether a request must carry one."""

    needed: bool = False
    keys: tuple[Key, ...] = ()


class _Entry(KeyLimits, frozen=True, forbid_unknown_fields=True):
    """A key's table in the file; fields that it leaves out are those of [limits]."""

    sha256: str = ""
    admin: bool = False


class _Defaults(KeyLimits, frozen=True, forbid_unknown_fields=True):
    """The [limits] table."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limits: _Defaults = _Defaults()
    keys: dict[str, dict[str, object]] = {}


def digest_of(key: str) -> str:
    """The SHA-256 by which a key is known."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def parse_keys(text: str, place: str) -> tuple[KeyLimits, tuple[Key, ...]]:
    """The limits and keys of a key file. Raises StartError with a sentence; `place` names the file in it."""
    try:
        file = msgspec.convert(tomllib.loads(text), _File)
        limits = _limits(file.limits, "limits")
        keys = tuple(_key(name, {**_fields(file.limits), **table}) for name, table in file.keys.items())
    except (ValueError, RecursionError) as error:
        raise StartError(f"the key file {place} is wrong: {error}.") from error
    if len(keys) > MAX_KEYS:
        raise StartError(f"the key file {place} has {len(keys)} keys; {MAX_KEYS} at most.")
    if len({key.digest for key in keys}) < len(keys):
        raise StartError(f"the key file {place} has one sha256 under two names.")
    return limits, keys


def _key(name: str, table: dict[str, object]) -> Key:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:64]!r} is no name: 1 to 64 letters, digits, '_', '.', '-'")
    try:
        entry = msgspec.convert(table, _Entry)
    except msgspec.ValidationError as error:
        raise ValueError(f"[keys.{name}]: {error}") from error
    if not _DIGEST.fullmatch(entry.sha256):
        raise ValueError(f"[keys.{name}]: sha256 must be 64 hexadecimal digits, in lower case")
    return Key(name, entry.sha256, entry.admin, _limits(entry, f"keys.{name}"))


def _limits(table: KeyLimits, where: str) -> KeyLimits:
    limits = KeyLimits(**{name: getattr(table, name) for name in KeyLimits.__struct_fields__})
    for name, value in _fields(limits).items():
        if not 0 <= value <= 10**12:
            raise ValueError(f"[{where}]: {name} must be between 0 (no limit) and 10^12")
    return limits


def _fields(limits: KeyLimits) -> dict[str, int]:
    return {name: getattr(limits, name) for name in KeyLimits.__struct_fields__}
