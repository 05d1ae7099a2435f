"""Bytes from process to process, without codec and event loop: what a transport itself costs.

- `bytes ring`: `Ring` and `Doorbell`, a record, a checksum and a bell for every message. The receiver takes
  what there is; when there is nothing it watches for a moment, as `Inbox` does, and then parks in poll().
- `bytes zmq`: pyzmq's blocking send and recv.
- `bytes zmq uncopied`: the same with copy=False on both sides.
"""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Protocol

import zmq

from protocols.board import Column
from runtime.board import Board
from runtime.channel import WATCH_NS
from runtime.doorbell import Doorbell
from runtime.ring import Ring, watcher

CAPACITY = 8 << 20
HIGH_WATER = 100_000
PAUSE = 0.002
"""Seconds before a ping of a receiver that has gone to sleep."""
BATCH = 256


class Wire(Protocol):
    """Both directions between this process and its peer."""

    def send(self, payload: bytes) -> None:
        """Waits for room."""

    def receive(self) -> list[Any]:
        """Wait for messages; their bytes, in this process."""

    def spec(self) -> dict[str, Any]:
        """What the peer needs."""

    def descriptors(self) -> list[int]:
        """What it inherits."""

    def close(self) -> None:
        """Close everything."""


class RingWire:
    """A ring and a bell for each direction; the bells' words lie on a board, as in a company."""

    def __init__(self, board: Board, there: tuple[int, int, int], here: tuple[int, int, int]) -> None:
        self._board = board
        (self._out, self._bell), (self._into, self._own) = (
            (Ring.attach(ring), Doorbell.attach(bell, board.word(row, Column.AWAKE)))
            for ring, bell, row in (there, here)
        )
        self._fds = there, here
        self._watch = watcher([self._into])
        self._poll = select.poll()
        self._poll.register(self._own.fd, select.POLLIN)

    @classmethod
    def create(cls) -> RingWire:
        """New rings and bells."""
        there, here = ((Ring.create(CAPACITY).fd, Doorbell.create().fd, row) for row in (0, 1))
        return cls(Board.create(2), there, here)

    @classmethod
    def attach(cls, board: int, there: list[int], here: list[int]) -> RingWire:
        """The peer's end of `spec`."""
        return cls(Board.attach(board), (there[0], there[1], there[2]), (here[0], here[1], here[2]))

    def spec(self) -> dict[str, Any]:
        there, here = self._fds
        return {"board": self._board.fd, "there": here, "here": there}

    def descriptors(self) -> list[int]:
        (a, b, _), (c, d, _) = self._fds
        return [self._board.fd, a, b, c, d]

    def send(self, payload: bytes) -> None:
        while not self._out.write_nowait(payload, 1):
            time.sleep(0.0002)
        self._bell.ring()

    def receive(self) -> list[Any]:
        batch = self._into.read_batch(BATCH)
        if batch is None:
            self._watch(WATCH_NS)
            batch = self._into.read_batch(BATCH)
        while batch is None:
            self._own.rest()
            batch = self._into.read_batch(BATCH)
            if batch is None:
                self._poll.poll(1000)
            self._own.clear()
            batch = batch or self._into.read_batch(BATCH)
        return batch[1]

    def close(self) -> None:
        for part in (self._bell, self._own, self._out, self._into, self._board):
            part.close()


def connect(path: str, bind: bool, *, echo: bool) -> tuple[Any, Any, Any]:
    """pyzmq's context, and the sockets out and in: PUSH and PULL one way, one PAIR for round trips,
    high-water marks out of the way. bind: whether this is the end that comes first."""
    context: zmq.Context[Any] = zmq.Context()
    kinds = [zmq.PAIR] if echo else [zmq.PUSH, zmq.PULL]
    lanes = range(len(kinds)) if bind else reversed(range(len(kinds)))
    sockets = []
    for kind, lane in zip(kinds, lanes, strict=True):
        socket = context.socket(kind)
        socket.set_hwm(HIGH_WATER)
        (socket.bind if bind else socket.connect)(f"ipc://{path}.{lane}")
        sockets.append(socket)
    return context, sockets[0], sockets[-1]


class ZmqWire:
    """pyzmq's blocking calls."""

    def __init__(self, echo: bool, path: str, bind: bool, copy: bool) -> None:
        self._context, self._out, self._into = connect(path, bind, echo=echo)
        self._spec = {"echo": echo, "path": path, "bind": False, "copy": copy}
        self._copy = copy

    def spec(self) -> dict[str, Any]:
        return self._spec

    def descriptors(self) -> list[int]:
        return []

    def send(self, payload: bytes) -> None:
        self._out.send(payload, copy=self._copy)

    def receive(self) -> list[Any]:
        return [self._into.recv(copy=self._copy)]

    def close(self) -> None:
        self._context.destroy(linger=5000)


@contextlib.contextmanager
def opened(form: str, role: str) -> Iterator[Wire]:
    """This process's end of a new wire."""
    with tempfile.TemporaryDirectory() as directory:
        wire: Wire
        if form == "bytes ring":
            wire = RingWire.create()
        else:
            wire = ZmqWire(role != "sink", os.path.join(directory, "lane"), True, form == "bytes zmq")
        yield wire
        wire.close()


def lead(wire: Wire, role: str, payload: bytes, rounds: list[int]) -> tuple[list[int], float]:
    """Time each round; nanoseconds and processor seconds of the last one."""
    take(wire, 1)
    times: list[int] = []
    for n in rounds:
        cpu, start = time.process_time(), time.perf_counter_ns()
        if role == "sink":
            for _ in range(n):
                wire.send(payload)
            take(wire, 1)
            times = [time.perf_counter_ns() - start]
        else:
            times = [_ping(wire, payload, role) for _ in range(n)]
        cpu = time.process_time() - cpu
    return times, cpu


def _ping(wire: Wire, payload: bytes, role: str) -> int:
    if role == "rare":
        time.sleep(PAUSE)
    start = time.perf_counter_ns()
    wire.send(payload)
    wire.receive()
    return time.perf_counter_ns() - start


def follow(role: str, rounds: list[int], wire: dict[str, Any], **_: Any) -> float:
    """The peer's whole life; returns the processor seconds of its last round."""
    end: Wire = RingWire.attach(**wire) if "board" in wire else ZmqWire(**wire)
    end.send(b"ready")
    for n in rounds:
        cpu = time.process_time()
        if role == "sink":
            take(end, n)
            end.send(b"done")
        else:
            echo(end, n)
        cpu = time.process_time() - cpu
    end.close()
    return cpu


def take(wire: Wire, n: int) -> None:
    """Receive n messages."""
    while n > 0:
        n -= len(wire.receive())


def echo(wire: Wire, n: int) -> None:
    """Send n messages back."""
    while n > 0:
        for message in wire.receive():
            wire.send(message)
            n -= 1
