"""The line between supervisor and actor: orders, answers, refusals, and deaths in between."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from protocols.errors import PeerError, VerbError
from protocols.orders import Answer, Continue, Done, Flush, Flushed, Order, Pause, Paused
from protocols.standing import PauseMode
from runtime import frames
from runtime.orders import Gone, Handler, Line, obey

PAUSE = Pause(PauseMode.RETRACT)


async def _answer(order: Order) -> Answer:
    match order:
        case Pause():
            return Paused(running=2, waiting=1)
        case Continue():
            raise VerbError("conflict", "nothing is paused.")
        case Flush():
            return Flushed(3, 4)


@contextlib.asynccontextmanager
async def _line(handler: Handler | None = _answer) -> AsyncIterator[tuple[Line, socket.socket]]:
    """A line whose actor obeys with `handler`, or never listens."""
    ours, theirs = socket.socketpair()
    line = Line("scheduler.0", ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.run)
        if handler is not None:
            nursery.start_soon(obey, theirs, handler)
        yield line, theirs
        nursery.cancel_scope.cancel()
    line.close()
    theirs.close()


async def test_an_order_is_answered() -> None:
    async with _line() as (line, _):
        assert await line.order(PAUSE) == Paused(2, 1)
        assert await line.order(Flush()) == Flushed(3, 4)


async def test_a_refusal_is_raised_with_its_code() -> None:
    async with _line() as (line, _):
        with pytest.raises(VerbError, match="nothing is paused") as refusal:
            await line.order(Continue())
        assert refusal.value.code == "conflict"


async def test_orders_are_obeyed_one_after_another() -> None:
    begun, ended = [], []

    async def slowly(order: Order) -> Answer:
        begun.append(order)
        assert len(begun) == len(ended) + 1
        await trio.testing.wait_all_tasks_blocked()
        ended.append(order)
        return Done()

    async with _line(slowly) as (line, _), trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(line.order, Flush())
    assert len(ended) == 5


async def test_an_answer_that_nobody_waits_for_any_more_confuses_nobody() -> None:
    release = trio.Event()

    async def wait(order: Order) -> Answer:
        if isinstance(order, Pause):
            await release.wait()
            return Paused(9, 9)
        return Flushed(1, 1)

    async with _line(wait) as (line, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.order, PAUSE)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        release.set()
        assert await line.order(Flush()) == Flushed(1, 1)


async def test_an_order_waits_for_an_actor_that_starts() -> None:
    async with _line(None) as (line, theirs), trio.open_nursery() as nursery:
        answers: list[Answer] = []

        async def ask() -> None:
            answers.append(await line.order(Flush()))
            nursery.cancel_scope.cancel()

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert answers == []
        nursery.start_soon(obey, theirs, _answer)
    assert answers == [Flushed(3, 4)]


async def test_who_dies_before_it_answers_is_gone() -> None:
    async with _line(None) as (line, _), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Gone, match=r"scheduler\.0 died before it had answered"):
                await line.order(PAUSE)

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        line.close()
        with pytest.raises(Gone):
            await line.order(PAUSE)


@pytest.mark.parametrize("noise", [b"\xff" * 64, b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x02\x92\x01"])
async def test_noise_from_an_actor_answers_nothing(noise: bytes) -> None:
    async with _line(None) as (line, theirs):
        theirs.setblocking(False)
        theirs.send(noise)
        theirs.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.01) as scope:
            await line.order(Flush())
        assert scope.cancelled_caught


async def test_a_handler_that_is_wrong_ends_its_actor() -> None:
    async def wrong(_order: Order) -> Answer:
        raise RuntimeError("a bug")

    ours, theirs = socket.socketpair()
    line = Line("x", ours)
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a bug")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            nursery.start_soon(obey, theirs, wrong)
            with contextlib.suppress(Gone):
                await line.order(Flush())
    line.close()


async def test_frames_are_bounded() -> None:
    one, other = trio.testing.memory_stream_pair()
    await frames.send(one, b"x" * 11)
    with pytest.raises(PeerError, match="11 bytes; 10 at most"):
        await frames.receive(other, 10)
