"""What the connections of one server hold together, and who gives way when that is too much.

A connection that waits for a request is idle; an upgraded one with nothing to do rests. When every place is
taken, the one that has been idle longest gives its own up, or else the one that has rested longest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import trio

from protocols.errors import overloaded


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of one connection; bytes and seconds. Of one server: max_connections, and bodies_bytes of all
    request bodies together. parting_seconds: how long a silent connection is still listened to once the
    server stops, for a request may be under way on it."""

    head_bytes: int = 65536
    head_seconds: float = 10.0
    body_bytes: int = 4 * 1024 * 1024
    bodies_bytes: int = 256 * 1024 * 1024
    body_seconds: float = 60.0
    idle_seconds: float = 75.0
    write_seconds: float = 30.0
    parting_seconds: float = 1.0
    max_connections: int = 8192


class Occupancy:
    """The places and the memory of one server. stopping: no connection is to go on after its answer. held:
    bytes of request bodies."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.stopping = False
        self._places = trio.Semaphore(limits.max_connections)
        self._parting = math.inf
        self.held = 0
        self._idle: dict[trio.CancelScope, bool] = {}
        self._resting: dict[Callable[[], None], None] = {}

    async def take_place(self) -> None:
        """A place for a new connection, once there is one."""
        if self._places.value == 0 and self._idle:
            next(iter(self._idle)).cancel()
        elif self._places.value == 0 and self._resting:
            next(iter(self._resting))()
        await self._places.acquire()

    def give_place(self) -> None:
        """A connection is over."""
        self._places.release()

    def hold(self, size: int) -> None:
        """Count `size` bytes more of request bodies. Raises UserError 503 where they are too many."""
        self.held += size
        if self.held > self.limits.bodies_bytes:
            raise overloaded("The server has no memory for another request.")

    def stop(self) -> None:
        """Let every request finish, and close connections that stay silent. What has been sent meanwhile is
        served: its client could not know."""
        self.stopping = True
        self._parting = trio.current_time() + self.limits.parting_seconds
        for scope, parts in self._idle.items():
            if parts:
                scope.deadline = min(scope.deadline, self._parting)

    @contextlib.contextmanager
    def idle(self, scope: trio.CancelScope, *, parts: bool = True) -> Iterator[None]:
        """Around the wait for a request, which is cancelled when its place is needed; `parts`: and cut short
        by `stop`."""
        if parts:
            scope.deadline = min(scope.deadline, self._parting)
        self._idle[scope] = parts
        try:
            yield
        finally:
            del self._idle[scope]

    def rest(self, give_way: Callable[[], None]) -> None:
        """An upgraded connection has nothing to do: `give_way` is called when its place is needed."""
        self._resting[give_way] = None

    def work(self, give_way: Callable[[], None]) -> None:
        """It has something to do, or is over."""
        self._resting.pop(give_way, None)
