"""The channel without processes: rings and doorbells in memory, for tests of whatever moves mail.

The twin passes the same conformance suite as shared memory (tests/runtime/test_channel.py) because
only the bottom differs: `Inbox`, `Outbox`, the codec and the backpressure are the real ones.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import trio

from runtime.channel import Inbox, Outbox, inbox_for
from runtime.ring import Batch


class MemoryRing:
    """A `Ring` of `capacity` payload bytes in this process."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.limit = capacity // 2
        self._records: deque[tuple[int, bytes]] = deque()
        self._used = 0

    def write_nowait(self, payload: bytes, incarnation: int) -> bool:
        """Publish one record; False when there is no room, ValueError when there never can be."""
        size = len(payload)
        if size > self.limit:
            raise ValueError(f"a message of {size} bytes exceeds this ring's limit of {self.limit}")
        if self._used + size > self.capacity:
            return False
        self._records.append((incarnation, payload))
        self._used += size
        return True

    def read_batch(self, limit: int) -> Batch | None:
        """Take up to `limit` unread records of one incarnation; None when there is none."""
        if not self._records:
            return None
        incarnation = self._records[0][0]
        payloads: list[bytes] = []
        while self._records and self._records[0][0] == incarnation and len(payloads) < limit:
            payloads.append(self._records.popleft()[1])
        self._used -= sum(map(len, payloads))
        return incarnation, payloads

    def resync(self) -> int:
        """Skip everything unread; returns the bytes skipped."""
        skipped = self._used
        self._records.clear()
        self._used = 0
        return skipped

    def used(self) -> int:
        """Bytes unread."""
        return self._used


class MemoryDoorbell:
    """A `Doorbell` in this process."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """Wake the owner, now or when it next waits."""
        self._event.set()

    def rest(self) -> None:
        """The owner is going to wait."""

    def clear(self) -> None:
        """Make it silent."""
        if self._event.is_set():
            self._event = trio.Event()

    async def wait(self) -> None:
        """Sleep until it rings."""
        await self._event.wait()


class Exchange:
    """A little company's mail in memory: `edges` are (sender, receiver) pairs.

    Every actor of an edge has a doorbell and may ask for its inbox and its outbox, in any order.
    """

    def __init__(
        self, *edges: tuple[str, str], capacity: int = 1 << 20, control_capacity: int = 1 << 16
    ) -> None:
        names = {name for edge in edges for name in edge}
        self._bells = {name: MemoryDoorbell() for name in names}
        self._lanes = {edge: (MemoryRing(control_capacity), MemoryRing(capacity)) for edge in edges}

    def inbox(self, name: str, accepts: Any) -> Inbox[Any]:
        """The inbox of actor `name`, whose union of messages is `accepts`."""
        sources = {source: lanes for (source, to), lanes in self._lanes.items() if to == name}
        return inbox_for(accepts, self._bells[name], sources)

    def outbox(self, name: str, incarnation: int = 1) -> Outbox:
        """The outbox of actor `name`."""
        ways = {
            to: (*lanes, self._bells[to]) for (source, to), lanes in self._lanes.items() if source == name
        }
        return Outbox(incarnation, ways)
