"""The compiled core: what it computes, where it is declined, and that rings go on without it."""

from __future__ import annotations

import os
import pathlib
import random
import zlib

import pytest

from protocols.compiling import Unavailable
from runtime.doorbell import Doorbell
from runtime.native import Native, load, native


@pytest.fixture
def core() -> Native:
    made = native()
    if made is None:
        pytest.skip("there is no compiler")
    return made


def test_checksums_are_those_of_zlib(core: Native) -> None:
    draw = random.Random(0)
    for length in (*range(300), 1 << 16, (1 << 16) + 7):
        data, value = draw.randbytes(length), draw.getrandbits(32)
        assert core.crc32(data, value) == zlib.crc32(data, value)


def test_every_publication_passes_its_failpoints(core: Native) -> None:
    passed: list[str] = []
    end = core.End(bytearray(256 + 128 + 32), 128, passed.append)
    assert end.write(b"one", 1) and passed == ["ring.tail.before", "ring.tail.after"]
    assert end.read(1) == (1, [b"one"]) and passed[2:] == ["ring.head.before", "ring.head.after"]


def test_what_fails_before_publication_publishes_nothing(core: Native) -> None:
    def fail(point: str) -> None:
        raise RuntimeError(point)

    memory = bytearray(256 + 128 + 32)
    with pytest.raises(RuntimeError, match=r"ring\.tail\.before"):
        core.End(memory, 128, fail).write(b"one", 1)
    end = core.End(memory, 128, None)
    assert end.read(1) is None and end.write(b"two", 1)
    with pytest.raises(RuntimeError, match=r"ring\.head\.before"):
        core.End(memory, 128, fail).read(1)
    assert core.End(memory, 128, None).read(1) == (1, [b"two"])


def test_it_declines_what_is_not_in_order(core: Native) -> None:
    end = core.End(bytearray(256 + 128 + 32), 128, None)
    for payload, incarnation in ((bytearray(3), 1), (b"x", 1 << 32), (b"x", -1), (b"x", "1"), (bytes(41), 1)):
        assert end.write(payload, incarnation) is False  # type: ignore[arg-type]
    end.release()
    assert end.write(b"one", 1) is False and end.read(1) is False
    with pytest.raises(ValueError, match="no ring"):
        core.End(bytearray(300), 128, None)


def test_mail_is_watched_for_and_not_for_ever(core: Native) -> None:
    memories = [bytearray(256 + 128 + 32) for _ in range(2)]
    ends = tuple(core.End(memory, 128, None) for memory in memories)
    assert core.watch(ends, 1_000_000) is False
    core.End(memories[1], 128, None).write(b"one", 1)
    assert core.watch(ends, 60_000_000_000) is True
    with pytest.raises(TypeError, match="only ends"):
        core.watch((1,), 1)  # type: ignore[arg-type]


def test_a_closed_bell_is_silent() -> None:
    bell = Doorbell.create()
    bell.close()
    bell.ring()


def test_nobody_rings_whose_owner_is_awake(core: Native) -> None:
    bell = Doorbell.create(memoryview(bytearray(8)).cast("Q"))
    for calls, heard in (((), 1), ((bell.clear,), 0), ((bell.clear, bell.rest), 1)):
        for call in calls:
            call()
        bell.ring()
        with open(os.dup(bell.fd), "rb", buffering=0) as events:
            assert (events.read(8) or bytes(8))[0] == heard
    bell.close()


def test_without_a_compiler_python_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("TROUPE_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="false failed: no message"):
        load()
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("protocols.compiling.shutil.which", lambda _: None)
    with pytest.raises(Unavailable, match="there is no C\\+\\+ compiler"):
        load()
    monkeypatch.setattr("runtime.native.sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(Unavailable, match=r"there is no Python\.h"):
        load()
