"""The transport over real socket pairs: order, backlog, loss, and who is cancelled when."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from runtime.transport import MAX_UNREAD, Loss, Transport
from tests.patience import PATIENCE

BIG = 4 * 1024 * 1024


class Peer:
    """The other end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)

    async def take(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = await self.sock.recv(1 << 20)
            if not piece:
                break
            data += piece
        return bytes(data)


@contextlib.asynccontextmanager
async def pair(
    *, write_seconds: float = 30.0, max_backlog: int = 64 << 20
) -> AsyncIterator[tuple[Transport, Peer]]:
    ours, theirs = socket.socketpair()
    transport, peer = Transport(ours, write_seconds=write_seconds, max_backlog=max_backlog), Peer(theirs)
    async with trio.open_nursery() as nursery:
        transport.start(nursery)
        try:
            yield transport, peer
        finally:
            nursery.cancel_scope.cancel()
            transport.close()
            peer.sock.close()


async def test_small_writes_go_to_the_kernel_at_once() -> None:
    async with pair() as (transport, peer):
        transport.write_nowait(b"one ")
        transport.write_nowait(b"two")
        assert transport.ready and transport.backlog == 0
        assert await peer.take(7) == b"one two"


async def test_what_does_not_fit_is_queued_in_order_and_announced_when_drained() -> None:
    async with pair() as (transport, peer):
        drained: list[int] = []
        transport.on_drained = lambda: drained.append(transport.backlog)
        data = bytes(range(256)) * (BIG // 256)
        transport.write_nowait(data)
        transport.write_nowait(b"end")
        assert not transport.ready and transport.backlog > 0
        assert await peer.take(BIG + 3) == data + b"end"
        await transport.drained()
        assert transport.ready
        assert drained == [0]


async def test_end_of_the_peer_cancels_the_scope() -> None:
    async with pair() as (transport, peer):
        with transport.cancelled_when_lost() as scope:
            peer.sock.close()
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert transport.loss is Loss.CLOSED
        with transport.cancelled_when_lost() as late:
            await trio.sleep_forever()
        assert late.cancelled_caught


async def test_bytes_before_the_end_are_still_received() -> None:
    async with pair() as (transport, peer):
        await peer.sock.send(b"last words")
        peer.sock.close()
        assert await transport.receive() == b"last words"
        assert await transport.receive() == b""


async def test_a_peer_that_stops_reading_is_lost() -> None:
    async with pair(write_seconds=0.05) as (transport, _):
        with trio.fail_after(PATIENCE), transport.cancelled_when_lost():
            transport.write_nowait(bytes(BIG))
            await trio.sleep_forever()
        assert transport.loss is Loss.STALLED
        transport.write_nowait(b"ignored")
        assert not transport.ready


async def test_slow_progress_is_no_stall(hand_clock: trio.testing.MockClock) -> None:
    """Twenty seconds from one piece to the next, and many pieces."""
    async with pair(write_seconds=30.0) as (transport, peer):
        transport.write_nowait(bytes(BIG))
        taken, backlog, pauses = 0, transport.backlog, 0
        while taken < BIG:
            taken += len(await peer.sock.recv(BIG // 8))
            if transport.backlog < backlog:
                backlog = transport.backlog
                hand_clock.jump(20.0)
                pauses += 1
        assert pauses > 3 and transport.loss is None


async def test_no_progress_is_a_stall(hand_clock: trio.testing.MockClock) -> None:
    async with pair(write_seconds=30.0) as (transport, _):
        transport.write_nowait(bytes(BIG))
        await trio.testing.wait_all_tasks_blocked()
        hand_clock.jump(29.0)
        await trio.testing.wait_all_tasks_blocked()
        assert transport.loss is None
        hand_clock.jump(2.0)
        await trio.testing.wait_all_tasks_blocked()
        assert transport.loss is Loss.STALLED


async def test_too_much_backlog_is_a_loss() -> None:
    async with pair(max_backlog=BIG) as (transport, _):
        for _ in range(8):
            transport.write_nowait(bytes(BIG // 2))
        assert transport.loss is Loss.OVERFLOW


async def test_reading_ahead_is_bounded_and_goes_on_when_somebody_takes() -> None:
    async with pair() as (transport, peer):
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(64):
                sent += await peer.sock.send(bytes(65536))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            received = 0
            while received < 64 * 1024:
                data = await transport.receive()
                assert len(data) < MAX_UNREAD + 65536
                received += len(data)
            nursery.cancel_scope.cancel()
        while received < sent:
            received += len(await transport.receive())
        assert received == sent


async def test_linger_waits_for_the_peer_but_not_for_ever() -> None:
    async with pair() as (transport, peer):
        transport.write_nowait(b"sorry")
        await peer.sock.send(b"more and more")
        await transport.linger(0.05)
        assert await peer.take(6) == b"sorry"
        peer.sock.close()
        with trio.fail_after(PATIENCE):
            await transport.linger(60)


async def test_end_of_writing_comes_after_the_backlog() -> None:
    async with pair() as (transport, peer):
        transport.write_nowait(bytes(BIG))
        transport.end_writing()
        assert len(await peer.take(BIG + 1)) == BIG


@pytest.mark.parametrize("times", [1, 2])
async def test_close_is_idempotent(times: int) -> None:
    async with pair() as (transport, peer):
        for _ in range(times):
            transport.close()
        transport.write_nowait(b"ignored")
        assert await peer.take(1) == b""
