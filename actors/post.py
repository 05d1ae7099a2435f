"""Mail on its way out of an actor that must never wait: scheduler and balancer.

A message goes straight into its ring. When the ring is full, it and what follows it to the same place
are kept here in order, and tried again on a timer, while the actor goes on reading its own mail: two
actors that send to each other can therefore never wait for each other. What is kept is bounded by what
the open requests can produce.
"""

from __future__ import annotations

from collections import deque

import trio

from protocols.messages import CONTROL, Message
from runtime.channel import Outbox

RETRY = 0.002
"""Seconds between tries while a ring is full."""


class Post:
    """Sends without waiting. Control mail and data to one place are kept apart, as their rings are."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._kept: dict[tuple[str, bool], deque[Message]] = {}
        self._some = trio.Event()

    @property
    def kept(self) -> int:
        """Messages that wait for room."""
        return sum(map(len, self._kept.values()))

    def send(self, to: str, message: Message) -> None:
        """Now, or as soon as there is room."""
        way = to, message.__class__ in CONTROL
        queue = self._kept.get(way)
        if queue is None:
            try:
                self._outbox.send_nowait(to, message)
            except trio.WouldBlock:
                self._kept[way] = deque((message,))
                self._some.set()
        else:
            queue.append(message)

    async def deliver(self) -> None:
        """Bring away what is kept, for ever."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            while self._kept:
                await trio.sleep(RETRY)
                for way, queue in list(self._kept.items()):
                    self._drain(way, queue)

    def _drain(self, way: tuple[str, bool], queue: deque[Message]) -> None:
        while queue:
            try:
                self._outbox.send_nowait(way[0], queue[0])
            except trio.WouldBlock:
                return
            queue.popleft()
        del self._kept[way]
