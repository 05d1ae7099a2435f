"""Kill processes at the ends of a ring, again and again, and check every record that comes out.

`python -m tests.runtime.ring_campaign producers 100000` (or `consumers`, or `messages 10000000` without any
kill) prints what it saw and exits 0, or dies of the first assertion. It is a program of its own, because it
forks.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable
from functools import partial

from runtime.ring import Ring

_HEAD = struct.Struct("<IQ")


def payload_of(incarnation: int, index: int) -> bytes:
    """Bytes that say who wrote them and when, of a length that depends on it."""
    filler = (index * 2654435761 + incarnation) % 700
    return _HEAD.pack(incarnation, index) + bytes([index % 251]) * filler


def spawn(body: Callable[[], None]) -> int:
    """Fork a child that runs `body` for ever."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(1)
    return pid


def kill(pid: int) -> None:
    """SIGKILL and reap, as a supervisor does before it starts a replacement."""
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the child failed by itself"


def produce(fd: int, incarnation: int) -> None:
    ring = Ring.attach(fd)
    index = 0
    while True:
        if ring.write_nowait(payload_of(incarnation, index), incarnation):
            index += 1
        else:
            os.sched_yield()


def producers(kills: int) -> str:
    """One consumer, many producers: everything published arrives once, in order, whole."""
    draw = random.Random(1)
    ring = Ring.create(8192)
    total = 0
    for incarnation in range(1, kills + 1):
        pid = spawn(partial(produce, ring.fd, incarnation))
        index = 0
        enough = draw.randrange(1, 120)
        while index < enough:
            index = _check(ring, incarnation, index)
        time.sleep(draw.random() * 1e-4)
        kill(pid)
        while ring.used():
            index = _check(ring, incarnation, index)
        total += index
    return f"{kills} kills, {total} records"


def messages(count: int) -> str:
    """One producer that lives, `count` records through a ring that wraps all the time."""
    ring = Ring.create(1 << 16)
    pid = spawn(partial(produce, ring.fd, 1))
    index = 0
    while index < count:
        index = _check(ring, 1, index)
    kill(pid)
    return f"{index} records"


def _check(ring: Ring, incarnation: int, index: int) -> int:
    batch = ring.read_batch(16)
    if batch is None:
        os.sched_yield()
        return index
    assert batch[0] == incarnation
    for payload in batch[1]:
        assert payload == payload_of(incarnation, index)
        index += 1
    return index


def forward(source: int, target: int) -> None:
    incoming, outgoing = Ring.attach(source), Ring.attach(target)
    while True:
        batch = incoming.read_batch(1)
        while batch is None or not outgoing.write_nowait(batch[1][0], 1):
            os.sched_yield()
            batch = batch or incoming.read_batch(1)


def consumers(kills: int) -> str:
    """One producer, many consumers that pass everything on: a death costs at most the one record that
    it had taken, and repeats nothing."""
    draw = random.Random(2)
    incoming, outgoing = Ring.create(8192), Ring.create(8192)
    sent = expected = lost = 0
    for _ in range(kills):
        pid = spawn(partial(forward, incoming.fd, outgoing.fd))
        enough = expected + draw.randrange(1, 120)
        while expected < enough:
            if incoming.write_nowait(payload_of(1, sent), 1):
                sent += 1
            else:
                os.sched_yield()
            expected, missing = _follow(outgoing, expected)
            lost += missing
        kill(pid)
        expected, missing = _follow(outgoing, expected)
        lost += missing
    assert lost <= kills
    return f"{kills} kills, {sent} records, {lost} taken by the dead"


def _follow(ring: Ring, expected: int) -> tuple[int, int]:
    missing = 0
    _, payloads = ring.read_batch(1000) or (0, [])
    for payload in payloads:
        _, index = _HEAD.unpack_from(payload)
        assert index in (expected, expected + 1), "a record was repeated, or more than one is gone"
        assert payload == payload_of(1, index)
        missing += index - expected
        expected = index + 1
    return expected, missing


if __name__ == "__main__":
    campaign = {"producers": producers, "consumers": consumers, "messages": messages}[sys.argv[1]]
    print(campaign(int(sys.argv[2])))
