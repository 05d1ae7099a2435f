"""Messages from process to process over pyzmq, encoded and decoded with the rings' codec.

Outside any event loop, which is its fastest form; and as an actor would have to use it, parked on the
socket's descriptor in a Trio loop.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import trio
import zmq

from protocols.messages import SchedulerMail
from protocols.plan import StepDone
from protocols.wire import Decoder, encode_batch
from tools.bench.plain import PAUSE, connect

DONE = StepDone(0, 0, b"", b"", 0)


class Sockets:
    """Both directions between this process and its peer."""

    def __init__(self, role: str, path: str, bind: bool) -> None:
        self._context, self.out, self.into = connect(path, bind, echo=role != "sink")
        self._decode: Decoder[Any] = Decoder(SchedulerMail)

    def send(self, *messages: Any) -> None:
        """One frame with all of them."""
        self.out.send(encode_batch(messages))

    def receive(self) -> list[Any]:
        """The messages of one frame."""
        return self._decode.batch(self.into.recv())

    async def receive_in_trio(self) -> list[Any]:
        """The same without ever blocking the loop."""
        while True:
            try:
                return self._decode.batch(self.into.recv(zmq.NOBLOCK))
            except zmq.Again:
                await trio.lowlevel.wait_readable(self.into.FD)

    def take(self, n: int) -> None:
        """Receive n messages."""
        while n > 0:
            n -= len(self.receive())

    def push(self, message: StepDone, n: int, burst: int) -> None:
        """Send n messages, `burst` in a frame."""
        messages = (message,) * burst
        for _ in range(n // burst):
            self.send(*messages)

    def ping(self, message: StepDone, n: int, role: str) -> list[int]:
        """n round trips, nanoseconds each."""
        times = []
        for _ in range(n):
            if role == "rare":
                time.sleep(PAUSE)
            start = time.perf_counter_ns()
            self.send(message)
            self.receive()
            times.append(time.perf_counter_ns() - start)
        return times

    def close(self) -> None:
        """Close everything once it has been sent."""
        self._context.destroy(linger=5000)


@contextlib.contextmanager
def bound(role: str) -> Iterator[tuple[str, Sockets]]:
    """This process's end, and the path by which its peer finds it."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "lane")
        sockets = Sockets(role, path, bind=True)
        yield path, sockets
        sockets.close()


def lead(
    sockets: Sockets, role: str, message: StepDone, rounds: list[int], burst: int
) -> tuple[list[int], float]:
    """Time each round; nanoseconds and processor seconds of the last one."""
    times: list[int] = []
    sockets.take(1)
    for n in rounds:
        cpu, start = time.process_time(), time.perf_counter_ns()
        if role == "sink":
            sockets.push(message, n, burst)
            sockets.take(1)
            times = [time.perf_counter_ns() - start]
        else:
            times = sockets.ping(message, n, role)
        cpu = time.process_time() - cpu
    return times, cpu


async def lead_in_trio(
    sockets: Sockets, role: str, message: StepDone, rounds: list[int]
) -> tuple[list[int], float]:
    """`lead` for round trips, in a Trio loop."""
    times: list[int] = []
    await sockets.receive_in_trio()
    for n in rounds:
        cpu, times = time.process_time(), []
        for _ in range(n):
            if role == "rare":
                await trio.sleep(PAUSE)
            start = time.perf_counter_ns()
            sockets.send(message)
            await sockets.receive_in_trio()
            times.append(time.perf_counter_ns() - start)
        cpu = time.process_time() - cpu
    return times, cpu


def follow(role: str, rounds: list[int], path: str) -> float:
    """The peer's whole life; returns the processor seconds of its last round."""
    sockets = Sockets(role, path, bind=False)
    sockets.send(DONE)
    for n in rounds:
        cpu = time.process_time()
        if role == "sink":
            sockets.take(n)
            sockets.send(DONE)
        else:
            for _ in range(n):
                sockets.send(*sockets.receive())
        cpu = time.process_time() - cpu
    sockets.close()
    return cpu


async def follow_in_trio(role: str, rounds: list[int], path: str) -> float:
    """`follow` of `lead_in_trio`."""
    sockets = Sockets(role, path, bind=False)
    sockets.send(DONE)
    for n in rounds:
        cpu = time.process_time()
        for _ in range(n):
            sockets.send(*await sockets.receive_in_trio())
        cpu = time.process_time() - cpu
    sockets.close()
    return cpu
