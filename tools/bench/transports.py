"""What `tools.bench.ring` measures: one conversation between two processes, over rings or over pyzmq.

A form is a way to carry messages; every form encodes each message before it sends it and decodes what
it receives with the same codec, in the process that asks for it:

    ring         an actor's own `Outbox` and `Inbox` in a Trio loop: a record, a checksum and a bell for every
                 message; a sender that meets a full ring waits as actors do
    ring x16     the same with 16 messages in every `send_nowait`
    zmq          pyzmq's blocking API with no event loop around it, which is its fastest form: PUSH/PULL
                 one way, PAIR for round trips, high-water marks out of the way
    zmq x16      the same with 16 messages encoded into every frame
    zmq in trio  pyzmq as an actor would have to use it: non-blocking calls, parked on the socket's
                 descriptor (round trips only)
    bytes …      the transport alone (`tools.bench.plain`)

In `sink` the peer takes n messages and answers once; in `echo` it sends every message back at once; in `rare`
it does too, but each is sent to a receiver that has slept for two milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import trio

from protocols.board import Column
from protocols.messages import SchedulerMail
from protocols.plan import StepDone
from protocols.wire import Decoder, encode_batch
from runtime.board import Board
from runtime.channel import Inbox, Outbox
from runtime.doorbell import Doorbell
from runtime.ring import Ring
from tools.bench import plain
from tools.bench.plain import PAUSE

BURST = 16
PLAIN = ("bytes ring", "bytes zmq", "bytes zmq uncopied")
FORMS = {"ring": 1, "ring x16": BURST, "zmq": 1, "zmq x16": BURST, "zmq in trio": 1} | dict.fromkeys(PLAIN, 1)
"""Messages in a call, by form."""
CONTROL_BYTES, DATA_BYTES = 1 << 16, 8 << 20
DONE = StepDone(0, 0, b"", b"", 0)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measurement. nanoseconds: of all n messages one way, or of each round trip. cpu: nanoseconds of
    processor time a message, both processes with all their threads."""

    nanoseconds: tuple[int, ...]
    cpu: float


def message_of(size: int) -> StepDone:
    """A StepDone whose encoding takes `size` bytes, most of it in its two arrays."""
    for room in range(size - 32, size):
        message = StepDone(3, 1000, bytes(room // 2), bytes(room - room // 2), 1500)
        if len(encode_batch((message,))) >= size:
            return message
    raise ValueError(f"no message of {size} bytes")


def measure(form: str, role: str, message: StepDone, n: int) -> Sample:
    """Start the peer, warm both up with n messages, then time n more."""
    rounds = [n // BURST * BURST] * 2
    match form:
        case "ring" | "ring x16":
            return trio.run(_measure_ring, form, role, message, rounds)
        case "zmq in trio":
            return trio.run(_measure_zmq_in_trio, role, message, rounds)
        case _ if form in PLAIN:
            return _measure_plain(form, role, message, rounds)
        case _:
            return _measure_zmq(form, role, message, rounds)


@contextlib.contextmanager
def _peer(**spec: Any) -> Iterator[Callable[[], float]]:
    """The other process; the value is a function that waits for its end and returns its processor
    seconds of the last round."""
    command = [sys.executable, "-m", "tools.bench.transports", json.dumps(spec)]
    with subprocess.Popen(command, pass_fds=spec.get("fds", ()), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pipe = process.stdout
        yield lambda: float(pipe.read())


def _sample(times: list[int], own: float, peer: float, n: int) -> Sample:
    return Sample(tuple(times), (own + peer) * 1e9 / n)


# Rings.


class Edges:
    """Both directions between this process and its peer, as a company would wire them."""

    def __init__(
        self, board: Board, there: tuple[int, int, int], here: tuple[int, int, int], own: int
    ) -> None:
        """Descriptors of control ring, data ring and bell; own: the own bell's row of the board."""
        self.board = board
        self.fds = (board.fd, *there, *here)
        (to_control, to_data, far), (control, data, bell) = (
            (Ring.attach(fds[0]), Ring.attach(fds[1]), Doorbell.attach(fds[2], board.word(row, Column.AWAKE)))
            for fds, row in ((there, 1 - own), (here, own))
        )
        self.parts = (to_control, to_data, far, control, data, bell)
        self.outbox = Outbox(1, {"peer": (to_control, to_data, far)})
        self.inbox: Inbox[Any] = Inbox(bell, {"peer": (control, data)}, Decoder(SchedulerMail))

    @classmethod
    def create(cls) -> Edges:
        """New rings and bells."""
        return cls(Board.create(2), _new_edge(), _new_edge(), 0)

    @classmethod
    def attach(cls, fds: list[int]) -> Edges:
        """The peer's view of `create`'s descriptors."""
        board, a, b, c, d, e, f = fds
        return cls(Board.attach(board), (d, e, f), (a, b, c), 1)

    async def take(self, n: int) -> None:
        """Receive n messages."""
        while n > 0:
            n -= len(await self.inbox.receive())

    async def push(self, message: StepDone, n: int, burst: int) -> None:
        """Send n messages, `burst` in a call."""
        messages = (message,) * burst
        for _ in range(n // burst):
            try:
                self.outbox.send_nowait("peer", *messages)
            except trio.WouldBlock:
                await self._push_slowly(messages)

    async def _push_slowly(self, messages: tuple[StepDone, ...]) -> None:
        """The ring is full: what an actor does. A burst that was sent in part is sent again whole, which
        costs this side some work and is never counted in its favour."""
        for message in messages:
            await self.outbox.send("peer", message)

    async def ping(self, message: StepDone, n: int, role: str) -> list[int]:
        """n round trips, nanoseconds each."""
        times = []
        for _ in range(n):
            if role == "rare":
                await trio.sleep(PAUSE)
            start = time.perf_counter_ns()
            self.outbox.send_nowait("peer", message)
            await self.inbox.receive()
            times.append(time.perf_counter_ns() - start)
        return times

    async def echo(self, n: int) -> None:
        """Send n messages back."""
        while n > 0:
            for mail in await self.inbox.receive():
                self.outbox.send_nowait("peer", mail.message)
                n -= 1

    def close(self) -> None:
        """Close everything."""
        for part in self.parts:
            part.close()
        self.board.close()


def _new_edge() -> tuple[int, int, int]:
    return Ring.create(CONTROL_BYTES).fd, Ring.create(DATA_BYTES).fd, Doorbell.create().fd


async def _measure_ring(form: str, role: str, message: StepDone, rounds: list[int]) -> Sample:
    edges = Edges.create()
    times: list[int] = []
    with _peer(form=form, role=role, rounds=rounds, fds=edges.fds) as ended:
        await edges.take(1)
        for n in rounds:
            cpu, start = time.process_time(), time.perf_counter_ns()
            if role == "sink":
                await edges.push(message, n, FORMS[form])
                await edges.take(1)
                times = [time.perf_counter_ns() - start]
            else:
                times = await edges.ping(message, n, role)
            cpu = time.process_time() - cpu
        peer = ended()
    edges.close()
    return _sample(times, cpu, peer, rounds[-1])


async def _ring_peer(role: str, rounds: list[int], fds: list[int]) -> float:
    edges = Edges.attach(fds)
    edges.outbox.send_nowait("peer", DONE)
    for n in rounds:
        cpu = time.process_time()
        await (edges.take(n) if role == "sink" else edges.echo(n))
        cpu = time.process_time() - cpu
        if role == "sink":
            edges.outbox.send_nowait("peer", DONE)
    return cpu


def _measure_plain(form: str, role: str, message: StepDone, rounds: list[int]) -> Sample:
    with plain.opened(form, role) as wire:
        spec = {"form": form, "role": role, "rounds": rounds, "wire": wire.spec(), "fds": wire.descriptors()}
        with _peer(**spec) as ended:
            times, cpu = plain.lead(wire, role, encode_batch((message,)), rounds)
            return _sample(times, cpu, ended(), rounds[-1])


# pyzmq.


class Sockets:
    """Both directions between this process and its peer: one PAIR, or PUSH and PULL."""

    def __init__(self, role: str, path: str, bind: bool) -> None:
        import zmq  # only here, so that rings are measured where it is not installed

        self._zmq = zmq
        self._context: zmq.Context[Any] = zmq.Context()
        self._decode: Decoder[Any] = Decoder(SchedulerMail)
        kinds = [zmq.PUSH, zmq.PULL] if role == "sink" else [zmq.PAIR]
        lanes = range(len(kinds)) if bind else reversed(range(len(kinds)))
        sockets = [
            self._open(kind, f"ipc://{path}.{lane}", bind) for kind, lane in zip(kinds, lanes, strict=True)
        ]
        self.out, self.into = sockets[0], sockets[-1]

    def _open(self, kind: int, address: str, bind: bool) -> Any:
        socket = self._context.socket(kind)
        socket.set_hwm(100_000)
        (socket.bind if bind else socket.connect)(address)
        return socket

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
                return self._decode.batch(self.into.recv(self._zmq.NOBLOCK))
            except self._zmq.Again:
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
def _bound(role: str) -> Iterator[tuple[str, Sockets]]:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "lane")
        sockets = Sockets(role, path, bind=True)
        yield path, sockets
        sockets.close()


def _measure_zmq(form: str, role: str, message: StepDone, rounds: list[int]) -> Sample:
    times: list[int] = []
    with _bound(role) as (path, sockets), _peer(form=form, role=role, rounds=rounds, path=path) as ended:
        sockets.take(1)
        for n in rounds:
            cpu, start = time.process_time(), time.perf_counter_ns()
            if role == "sink":
                sockets.push(message, n, FORMS[form])
                sockets.take(1)
                times = [time.perf_counter_ns() - start]
            else:
                times = sockets.ping(message, n, role)
            cpu = time.process_time() - cpu
        peer = ended()
    return _sample(times, cpu, peer, rounds[-1])


async def _measure_zmq_in_trio(role: str, message: StepDone, rounds: list[int]) -> Sample:
    times: list[int] = []
    with _bound("echo") as (path, sockets), _peer(form="zmq in trio", rounds=rounds, path=path) as ended:
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
        peer = ended()
    return _sample(times, cpu, peer, rounds[-1])


def _zmq_peer(role: str, rounds: list[int], path: str) -> float:
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


async def _zmq_in_trio_peer(rounds: list[int], path: str) -> float:
    sockets = Sockets("echo", path, bind=False)
    sockets.send(DONE)
    for n in rounds:
        cpu = time.process_time()
        for _ in range(n):
            sockets.send(*await sockets.receive_in_trio())
        cpu = time.process_time() - cpu
    sockets.close()
    return cpu


def be_peer(form: str, **spec: Any) -> float:
    """The other process's whole life; returns the processor seconds of its last round."""
    match form:
        case "ring" | "ring x16":
            return trio.run(lambda: _ring_peer(**spec))
        case "zmq in trio":
            return trio.run(lambda: _zmq_in_trio_peer(**spec))
        case _ if form in PLAIN:
            return plain.follow(**spec)
        case _:
            return _zmq_peer(**spec)


if __name__ == "__main__":
    print(be_peer(**json.loads(sys.argv[1])))
