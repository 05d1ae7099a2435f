"""The compiled core of rings and doorbells (`native.cpp`), where there are a C++ compiler and Python.h.

It does what runtime/ring.py does, several times as fast, over the same memory; where it cannot be had, Python
does it, and both kinds of process can stand at the two ends of one ring.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import pathlib
import sys
import sysconfig
import zlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from protocols.compiling import Unavailable, compiled, find_compiler, fingerprint

_SOURCE = pathlib.Path(__file__).with_name("native.cpp")
_FLAGS = ("-std=c++17", "-O2", "-mpclmul", "-msse4.1", "-fPIC", "-shared", "-w")


class End(Protocol):
    """One end of a ring. It answers False, and has done nothing, wherever it is not sure.

    tail, head: the cursors as this process knows them. head_seen: where the consumer was last seen.
    """

    tail: int
    head: int
    head_seen: int

    def write(self, payload: bytes, incarnation: int, /) -> bool:
        """Publish one record."""

    def read(self, limit: int, /) -> tuple[int, list[bytes]] | bool | None:
        """Take a batch of records (incarnation, payloads); None when there is none."""

    def release(self) -> None:
        """Let go of the memory."""


class Bell(Protocol):
    """A doorbell, as `runtime.doorbell.Doorbell`."""

    def ring(self) -> None:
        """Wake the owner unless it is awake."""

    def rest(self) -> None:
        """The owner wants to be woken from now on."""

    def clear(self) -> None:
        """The owner is awake."""

    def release(self) -> None:
        """Let go of the word."""


Ends = tuple[End, ...]


class Native(Protocol):
    """The module."""

    def End(self, memory: Any, capacity: int, reach: Callable[[str], None] | None, /) -> End:
        """An end of the ring in `memory`."""

    def Bell(self, fd: int, awake: Any, /) -> Bell:
        """The bell of an eventfd and a word, or None."""

    def crc32(self, data: bytes, value: int, /) -> int:
        """As `zlib.crc32`."""

    def watch(self, ends: Ends, nanoseconds: int, /) -> bool:
        """Wait awake for mail at any of the ends; False: in vain."""


@functools.cache
def native() -> Native | None:
    """The module, compiled by the first process that asks on this machine; None where it cannot be had."""
    try:
        return load()
    except Unavailable:
        return None


def load() -> Native:
    """The module. Raises Unavailable."""
    headers = pathlib.Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        raise Unavailable(f"there is no Python.h in {headers}")
    compiler = find_compiler()
    flags = (*_FLAGS, f"-I{headers}")
    try:
        name = fingerprint([_SOURCE], compiler, flags, sys.implementation.cache_tag)
        module = _imported(compiled(name, compiler, flags, _SOURCE, lambda: None))
    except (OSError, ImportError) as error:
        raise Unavailable(f"it cannot be kept or loaded: {error}") from error
    sample = bytes(range(256))
    if any(module.crc32(sample[:size], 7) != zlib.crc32(sample[:size], 7) for size in (0, 20, 100, 256)):
        raise Unavailable("what was compiled here gives other checksums")
    return module


def _imported(path: pathlib.Path) -> Native:
    loader = importlib.machinery.ExtensionFileLoader("native", str(path))
    spec = importlib.util.spec_from_file_location("native", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return cast(Native, module)
