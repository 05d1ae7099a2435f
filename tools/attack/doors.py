"""The doors of a company, from outside: one connection of an attacker each, which plays case after case."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec
import trio

from runtime import admin
from tools.attack import frames, orders, requests
from tools.attack.requests import Request
from tools.chaos.company import Company

PATIENCE = 60.0
"""Seconds within which every case is answered or cut off."""
SOON = 0.5
"""Seconds after which a case that may rightly wait for more bytes is told that there are none."""
_READ = 1 << 16


class Door(Protocol):
    """An attacker. outcomes: what came, by status, close code or answer."""

    outcomes: Counter[str]

    async def play(self, rng: random.Random) -> tuple[int, str]:
        """The next cases: how many, and what was wrong with an answer ("" for nothing)."""

    async def aclose(self) -> None:
        """Leave."""


class _Connection:
    """A connection that is made when it is needed."""

    def __init__(self, company: Company) -> None:
        self.company = company
        self.outcomes: Counter[str] = Counter()
        self.stream: trio.SocketStream | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.aclose()

    async def opened(self) -> trio.SocketStream:
        """The connection."""
        if self.stream is None:
            self.stream = await trio.open_tcp_stream(self.company.host, self.company.port)
        return self.stream

    async def aclose(self) -> None:
        """Leave."""
        if self.stream is not None:
            with trio.CancelScope(shield=True):
                await self.stream.aclose()
        self.stream = None

    async def rest(self) -> bytes:
        """Everything until the server closes, when it knows that nothing more is sent."""
        data = b""
        if self.stream is not None:
            with contextlib.suppress(trio.BrokenResourceError):
                await self.stream.send_eof()
                while piece := await self.stream.receive_some(_READ):
                    data += piece
        await self.aclose()
        return data


class HttpDoor(_Connection):
    """Plays `requests`."""

    async def play(self, rng: random.Random) -> tuple[int, str]:
        """One request, or what is none."""
        case = requests.request(rng, self.company.model)
        with trio.move_on_after(PATIENCE):
            answer = await (self._whole(case) if case.whole else self._broken(case))
            self.outcomes.update(str(status) for status in requests.statuses(answer) or [0])
            wrong = requests.judge(answer)
            if case.whole and not answer:
                wrong = "no answer"
            return 1, f"{wrong}: {case.data[:2000]!r} -> {answer[:500]!r}" if wrong else ""
        await self.aclose()
        return 1, f"nothing within {PATIENCE:g} s: {case.data[:2000]!r}"

    async def _broken(self, case: Request) -> bytes:
        """On a connection of its own, which then ends."""
        await self.aclose()
        with contextlib.suppress(trio.BrokenResourceError):
            await (await self.opened()).send_all(case.data)
        return await self.rest()

    async def _whole(self, case: Request) -> bytes:
        """On the connection that there is, or on another where the server has closed that one."""
        for _ in range(2):
            try:
                stream = await self.opened()
                await stream.send_all(case.data)
                return await self._answer(stream, case)
            except (trio.BrokenResourceError, EOFError):
                await self.aclose()
        return b""

    async def _answer(self, stream: trio.SocketStream, case: Request) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await _some(stream)
        head, _, body = data.partition(b"\r\n\r\n")
        head = head.lower()
        if b"transfer-encoding: chunked" in head:
            while not body.endswith(b"0\r\n\r\n"):
                body += await _some(stream)
        elif not case.head_only and b"content-length: " in head:
            size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(body) < size:
                body += await _some(stream)
        if b"connection: close" in head:
            await self.aclose()
        return data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body


async def _some(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some(_READ)
    if not data:
        raise EOFError
    return bytes(data)


class FrameDoor(_Connection):
    """Plays `frames`: bursts, each with a ping behind it, whose pong says that the burst was looked at."""

    def __init__(self, company: Company) -> None:
        super().__init__(company)
        self._reader = frames.Reader()
        self._signs = 0

    async def play(self, rng: random.Random) -> tuple[int, str]:
        """One burst."""
        data, count = frames.burst(rng, self.company.model)
        with trio.move_on_after(PATIENCE):
            try:
                await self._shake_hands()
                await self._burst(data)
            except (trio.BrokenResourceError, EOFError):
                await self._end("cut off")
            wrong = self._reader.wrong
            return count, f"{wrong}: {data[:2000]!r}" if wrong else ""
        await self.aclose()
        return count, f"nothing within {PATIENCE:g} s: {data[:2000]!r}"

    async def _shake_hands(self) -> None:
        if self.stream is not None:
            return
        self._reader = frames.Reader()
        stream = await self.opened()
        await stream.send_all(frames.HANDSHAKE)
        head = b""
        while b"\r\n\r\n" not in head:
            head += await _some(stream)
        if not head.startswith(b"HTTP/1.1 101 "):
            self._reader.wrong = f"no WebSocket: {head!r}"
        self._reader.feed(head.partition(b"\r\n\r\n")[2], b"")

    async def _burst(self, data: bytes) -> None:
        """Send a burst and its ping. Where no pong comes, a broken frame has swallowed it: then the end."""
        stream = await self.opened()
        self._signs += 1
        sign = b"%d" % self._signs
        await stream.send_all(data + frames.frame(frames.PING, sign))
        with trio.move_on_after(SOON) as patience:
            while not self._reader.feed(await _some(stream), sign):
                pass
        if patience.cancelled_caught:
            self._reader.feed(await self.rest(), sign)
            await self._end("swallowed")
        elif self._reader.closed is not None:
            await self._end(str(self._reader.closed))
        else:
            self.outcomes["pong"] += 1

    async def _end(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        await self.aclose()


class OrderDoor(_Connection):
    """Plays `orders` at the admin socket."""

    async def opened(self) -> trio.SocketStream:
        """The connection."""
        if self.stream is None:
            self.stream = await trio.open_unix_socket(admin.native(self.company.address))
        return self.stream

    async def play(self, rng: random.Random) -> tuple[int, str]:
        """One frame."""
        data, true_length = orders.order(rng)
        with trio.move_on_after(PATIENCE):
            wrong = await self._order(data, true_length)
            return 1, f"{wrong}: {data[:2000]!r}" if wrong else ""
        await self.aclose()
        return 1, f"nothing within {PATIENCE:g} s: {data[:2000]!r}"

    async def _order(self, data: bytes, true_length: bool) -> str:
        answer: dict[str, Any] | None = None
        try:
            stream = await self.opened()
            await stream.send_all(data)
            if not true_length:
                await stream.send_eof()
            answer = await _reply(stream)
        except (trio.BrokenResourceError, EOFError):
            pass
        if answer is None or not true_length:
            await self.aclose()
        self.outcomes["dropped" if answer is None else str(answer.get("code", "ok"))] += 1
        return orders.judge(answer) if answer is not None else ""


async def _reply(stream: trio.SocketStream) -> dict[str, Any]:
    """The last frame of an answer; what follows it is passed over. Raises EOFError."""
    data = b""
    while True:
        while len(data) < 4 or len(data) < (end := 4 + int.from_bytes(data[:4], "big")):
            data += await _some(stream)
        answer: dict[str, Any] = msgspec.msgpack.decode(data[4:end])
        data = data[end:]
        if not answer.get("more"):
            return answer
