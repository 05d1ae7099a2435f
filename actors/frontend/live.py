"""A response at work: the sink of its generation, and the readers who follow its events.

Readers have cursors and take events as their sockets do; a response without readers (background)
just grows. `Store` finds responses by id: all that are running, and the latest that were stored.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable

import trio

from actors.frontend.engine import Engine
from actors.frontend.generation import Generation
from actors.frontend.prompts import Message
from actors.frontend.response_events import Event
from actors.frontend.response_stream import Phase, ResponseStream
from protocols.errors import ErrorBody
from protocols.messages import TextRow

_NEW = Phase.NEW

BATCH = 256
"""Events of one write at most."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages that a later response may continue, without instructions. size: bytes, about."""

    messages: tuple[Message, ...] = ()
    size: int = 0

    def and_then(self, messages: tuple[Message, ...], size: int) -> Conversation:
        """Continued by `messages`."""
        return Conversation(self.messages + messages, self.size + size)


class LiveResponse:
    """One response, from its start until it is over. owner: name of the key that it belongs to, "" where
    nobody needs one."""

    def __init__(
        self,
        stream: ResponseStream,
        conversation: Conversation | None,
        on_over: Callable[[LiveResponse], None],
        owner: str = "",
    ) -> None:
        self.owner = owner
        self.stream = stream
        self._asked = conversation
        self._on_over = on_over
        self._readers: list[Reader] = []
        self._engine: Engine | None = None
        self._generation: Generation | None = None
        self._settled = False

    @property
    def id(self) -> str:
        """The response's id."""
        return self.stream.id

    @property
    def generation(self) -> Generation:
        """What the engine makes of it."""
        assert self._generation is not None, "launch binds it"
        return self._generation

    def bind(self, engine: Engine, generation: Generation) -> None:
        """What is to be aborted when the response is cancelled."""
        self._engine, self._generation = engine, generation

    def start(self) -> None:
        """Events may go out from now on."""
        self.stream.start()
        self.pump()

    def feed(self, index: int, row: TextRow) -> None:
        """New text."""
        self.stream.feed(row)

    def fail(self, error: ErrorBody) -> None:
        """The end, by an error."""
        self.stream.fail(error)

    def pump(self) -> None:
        """Let every reader take what it can."""
        if self.stream.over and self.stream.phase is not _NEW:
            self._settle()
        for reader in self._readers:
            reader.pump()

    def cancel(self) -> None:
        """End the response here; nothing happens when it is over, or when another process is to go on."""
        if self._engine is not None and self._generation is not None:
            if self._engine.keeps(self._generation):
                return
            self._engine.abort(self._generation)
        self.stream.cancel()
        self._settle()
        self.pump()

    def _settle(self) -> None:
        if not self._settled:
            self._settled = True
            self._on_over(self)

    @property
    def followed(self) -> bool:
        """Whether somebody reads."""
        return bool(self._readers)

    @property
    def asked(self) -> Conversation | None:
        """The conversation that it answers; None where it was too long to survive its first process."""
        return self._asked

    def conversation(self) -> Conversation | None:
        """What a later response continues: the input, and the answer where there is one; None where the
        input was too long to survive the process that took it."""
        if self._asked is None:
            return None
        message, size = self.stream.answer()
        return self._asked.and_then((message,), size) if size else self._asked

    def follow(self, reader: Reader) -> None:
        """Add a reader and let it take what there is."""
        self._readers.append(reader)
        reader.pump()

    def leave(self, reader: Reader) -> None:
        """Remove a reader."""
        self._readers.remove(reader)


class Reader:
    """Follows a response's events from number `cursor` on. ready: whether `write` would not queue."""

    def __init__(
        self,
        response: LiveResponse,
        write: Callable[[list[Event]], None],
        ready: Callable[[], bool],
        cursor: int = 0,
    ) -> None:
        self._stream = response.stream
        self._write = write
        self._ready = ready
        self._cursor = cursor
        self._over = False
        self.ended = trio.Event()

    def pump(self) -> None:
        """Write the events that have come, while the socket takes them."""
        more = True
        while more and not self._over and self._ready():
            events = self._stream.take(self._cursor, BATCH)
            more = len(events) == BATCH
            self._cursor += len(events)
            if events:
                self._write(events)
            if self._stream.over and self._stream.finished_at(self._cursor):
                self._over = True
                self.ended.set()


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A stored response. size: bytes, about."""

    response: LiveResponse
    conversation: Conversation | None
    size: int


class Store:
    """Responses by id: the running ones, and up to `limit` stored ones of `size_limit` bytes together."""

    def __init__(self, limit: int = 1024, size_limit: int = 128 * 1024 * 1024) -> None:
        self._limit = limit
        self._size_limit = size_limit
        self._running: dict[str, LiveResponse] = {}
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._size = 0

    def run(self, response: LiveResponse) -> None:
        """A response has started."""
        self._running[response.id] = response

    def forget(self, response: LiveResponse) -> None:
        """A response is over and is not to be found again."""
        self._running.pop(response.id, None)

    def keep(self, response: LiveResponse) -> None:
        """A response is over and is to be found from now on, unless it never began; the least recently
        used give way."""
        self.forget(response)
        if response.stream.phase is Phase.NEW:
            return
        conversation = response.conversation()
        size = response.stream.size + (conversation.size if conversation is not None else 0)
        kept = _Kept(response, conversation, size)
        self._kept[response.id] = kept
        self._size += kept.size
        while len(self._kept) > self._limit or (self._size > self._size_limit and len(self._kept) > 1):
            self.delete(next(iter(self._kept)))

    def delete(self, id: str) -> bool:
        """Forget a stored response; whether there was one."""
        kept = self._kept.pop(id, None)
        if kept is not None:
            self._size -= kept.size
        return kept is not None

    def get(self, id: str) -> LiveResponse | None:
        """The response, None when it is not here."""
        if id in self._kept:
            self._kept.move_to_end(id)
            return self._kept[id].response
        return self._running.get(id)

    def conversation(self, id: str) -> Conversation | None:
        """The conversation that a stored response ends; None when it cannot be continued."""
        kept = self._kept.get(id)
        if kept is None or kept.response.stream.phase is Phase.FAILED:
            return None
        self._kept.move_to_end(id)
        return kept.conversation
