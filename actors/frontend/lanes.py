"""Order among the requests of one WebSocket: one at a time a lane, first come first served; sans-I/O.

A lane is a conversation's track on the socket: the default one (None) or a named one. Lanes run at the
same time, up to a bound; whatever exceeds it queues, up to a bound of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque

from actors.frontend.live import Conversation
from protocols.errors import UserError
from protocols.openai.responses import ResponsesRequest, ResumeEvent

MAX_RUNNING = 16
MAX_NAMED = 32
MAX_QUEUED = 64
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")


def lane_of(stream_id: object) -> str | None:
    """The lane that an answer to a bad event is for: the one it names, where that is a name."""
    return stream_id if isinstance(stream_id, str) and _NAME.fullmatch(stream_id) else None


@dataclasses.dataclass(frozen=True)
class Create:
    """A `response.create` or `response.resume` that waits for its turn. size: bytes of the message."""

    lane: str | None
    request: ResponsesRequest | ResumeEvent
    size: int


class Lanes:
    """All lanes of one socket. queue_bytes: of waiting requests together; named: lanes with a name at
    most."""

    def __init__(self, queue_bytes: int, named: int = MAX_NAMED) -> None:
        self._queue_bytes = queue_bytes
        self._most_named = min(named, MAX_NAMED)
        self._queue: deque[Create] = deque()
        self._running: dict[str | None, int] = {}
        self._named: set[str] = set()
        self._latest: dict[str | None, tuple[str, Conversation]] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._running and not self._queue

    @property
    def waiting(self) -> int:
        """Bytes of the requests that wait for their turn."""
        return sum(create.size for create in self._queue)

    @property
    def held(self) -> int:
        """Bytes of the requests that run or wait."""
        return self.waiting + sum(self._running.values())

    def offer(self, create: Create) -> None:
        """Queue a request; raises UserError (code `invalid_stream_id`, `websocket_stream_limit_reached`,
        `rate_limit_exceeded`)."""
        self._check_name(create.lane)
        too_many = self.waiting + create.size > self._queue_bytes
        if len(self._queue) >= MAX_QUEUED or (self._queue and too_many):
            raise UserError(
                "Too many requests wait on this connection.",
                status=429,
                type="rate_limit_error",
                code="rate_limit_exceeded",
            )
        if create.lane is not None:
            self._named.add(create.lane)
        self._queue.append(create)

    def start(self) -> list[Create]:
        """The requests whose turn it is now; they run until `end`."""
        started: list[Create] = []
        waiting: deque[Create] = deque()
        for create in self._queue:
            if create.lane in self._running or len(self._running) >= MAX_RUNNING:
                waiting.append(create)
            else:
                self._running[create.lane] = create.size
                started.append(create)
        self._queue = waiting
        return started

    def end(self, lane: str | None) -> None:
        """The lane's running request is over."""
        del self._running[lane]

    def remember(self, lane: str | None, id: str, conversation: Conversation) -> None:
        """The lane's latest response, which the next request may continue though it was not stored."""
        self._latest[lane] = (id, conversation)

    def recall(self, id: str) -> Conversation | None:
        """The conversation of a lane's latest response."""
        for latest, conversation in self._latest.values():
            if latest == id:
                return conversation
        return None

    def _check_name(self, lane: str | None) -> None:
        if lane is None or lane in self._named:
            return
        if _NAME.fullmatch(lane) is None:
            raise UserError(
                "stream_id must be 1 to 256 letters, digits, underscores, hyphens or periods.",
                code="invalid_stream_id",
                param="stream_id",
            )
        if len(self._named) >= self._most_named:
            raise UserError(
                f"A connection may have at most {self._most_named} named streams.",
                code="websocket_stream_limit_reached",
                param="stream_id",
            )
