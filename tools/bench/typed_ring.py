"""Messages from process to process as actors send them: an `Outbox` and an `Inbox` in a Trio loop."""

from __future__ import annotations

import time
from typing import Any

import trio

from protocols.board import Column
from protocols.messages import SchedulerMail
from protocols.plan import StepDone
from protocols.wire import Decoder
from runtime.board import Board
from runtime.channel import Inbox, Outbox
from runtime.doorbell import Doorbell
from runtime.ring import Ring
from tools.bench.plain import PAUSE

CONTROL_BYTES, DATA_BYTES = 1 << 16, 8 << 20
DONE = StepDone(0, 0, b"", b"", 0)


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


async def lead(
    edges: Edges, role: str, message: StepDone, rounds: list[int], burst: int
) -> tuple[list[int], float]:
    """Time each round; nanoseconds and processor seconds of the last one."""
    times: list[int] = []
    await edges.take(1)
    for n in rounds:
        cpu, start = time.process_time(), time.perf_counter_ns()
        if role == "sink":
            await edges.push(message, n, burst)
            await edges.take(1)
            times = [time.perf_counter_ns() - start]
        else:
            times = await edges.ping(message, n, role)
        cpu = time.process_time() - cpu
    return times, cpu


async def follow(role: str, rounds: list[int], fds: list[int], **_: Any) -> float:
    """The peer's whole life; returns the processor seconds of its last round."""
    edges = Edges.attach(fds)
    edges.outbox.send_nowait("peer", DONE)
    for n in rounds:
        cpu = time.process_time()
        await (edges.take(n) if role == "sink" else edges.echo(n))
        cpu = time.process_time() - cpu
        if role == "sink":
            edges.outbox.send_nowait("peer", DONE)
    return cpu
