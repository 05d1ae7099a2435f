"""Orders from the supervisor to an actor: a line between the two, and both of its ends.

Each incarnation has a line of its own, a socket pair made when its process is started, so nothing that was
said to a dead one is heard by the next. Frames (`runtime.frames`) carry numbered orders one way and
answers the other. An order to an actor that is still starting waits until it listens. An actor obeys its
orders one after another, in its own loop, between two pieces of its work.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
from collections.abc import Awaitable, Callable

import msgspec
import trio

from protocols.errors import PeerError, VerbError
from protocols.orders import Answer, Answered, Numbered, Order, Refused
from runtime import frames
from runtime.failpoints import reach

LIMIT = 16 * 1024 * 1024
"""Longest frame in bytes."""

Handler = Callable[[Order], Awaitable[Answer]]
"""Carries out an order. Raises VerbError to refuse it; whatever else it raises ends the actor."""

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)
_encode = msgspec.msgpack.Encoder().encode
_decode_order = msgspec.msgpack.Decoder(Numbered).decode
_decode_answer = msgspec.msgpack.Decoder(Answered).decode


class Gone(VerbError):
    """The actor died before it answered."""

    def __init__(self, name: str, why: str = "died before it had answered") -> None:
        super().__init__("failed", f"{name} {why}.")


class _Asked:
    """An order that waits for its answer."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.answer: Answer | None = None


class Line:
    """The supervisor's end of the line to one incarnation of actor `name`."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        self._name = name
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._outgoing, self._unsent = trio.open_memory_channel[bytes](math.inf)
        self._closed = False

    async def order(self, order: Order) -> Answer:
        """Have `order` carried out. Raises VerbError where it is refused, Gone where the actor dies first.
        Cancelling the wait does not take the order back.
        """
        if self._closed:
            raise Gone(self._name)
        number, asked = next(self._numbers), _Asked()
        self._asked[number] = asked
        try:
            self._outgoing.send_nowait(_encode(Numbered(number, order)))
            await asked.over.wait()
        finally:
            del self._asked[number]
        match asked.answer:
            case None:
                raise Gone(self._name)
            case Refused(code, sentence):
                raise VerbError(code, sentence)
            case answer:
                return answer

    async def run(self) -> None:
        """Carry orders and answers until the actor hangs up."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            await self._receive()
            nursery.cancel_scope.cancel()

    async def _send(self) -> None:
        with contextlib.suppress(*_BROKEN):
            async for data in self._unsent:
                await frames.send(self._stream, data)

    async def _receive(self) -> None:
        with contextlib.suppress(PeerError, msgspec.MsgspecError, *_BROKEN):
            while (data := await frames.receive(self._stream, LIMIT)) is not None:
                self._take(_decode_answer(data))

    def _take(self, answered: Answered) -> None:
        asked = self._asked.get(answered.number)
        if asked is not None:
            asked.answer = answered.answer
            asked.over.set()

    def close(self) -> None:
        """Fail all waiting orders: the actor is dead."""
        self._closed = True
        self._stream.socket.close()
        for asked in self._asked.values():
            asked.over.set()


async def obey(line: socket.socket, handler: Handler) -> None:
    """The actor's end: carry out what comes on `line`, until the supervisor hangs up."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(line))
    async with stream:
        while (data := await frames.receive(stream, LIMIT)) is not None:
            numbered = _decode_order(data)
            reach("order.before")
            answer = await _carry_out(numbered.order, handler)
            reach("order.after")
            await frames.send(stream, _encode(Answered(numbered.number, answer)))


async def _carry_out(order: Order, handler: Handler) -> Answer:
    try:
        return await handler(order)
    except VerbError as error:
        return Refused(error.code, str(error))
