"""Typed mail between actors, over rings: what an actor sees of the transport.

An inbox is every ring that leads to one actor plus its doorbell; an outbox is every ring that leads away
from it. An edge is a pair of rings, control and data: control mail (`protocols.messages.CONTROL`) goes
by its own small ring and is read first, so a flood of data never delays an abort. Within one ring
order is kept; between the two there is none.

A record carries the messages of one `send_nowait` call, encoded and decoded in one piece, so that a
burst costs one checksum, one publication and one bell.

A sender is killed and reaped before its next incarnation starts, so in one ring incarnations never
decrease. A record of which that is not true is dropped like a broken one.

A full ring makes the sender wait, nothing is dropped. A record that is not whole, or not of accepted
messages, is counted in `Inbox.dropped`, logged, and never seen by the actor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from time import perf_counter_ns
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import structlog
import trio

from protocols.errors import PeerError
from protocols.messages import CONTROL, Message
from protocols.wire import Decoder, encode_batch
from runtime.failpoints import around
from runtime.patience import SHORT_WAIT_NS, Patience
from runtime.ring import Batch, watcher

T = TypeVar("T")

RELOOK = 1.0
"""Seconds after which a parked receiver looks at its rings though no bell rang."""
RETRY_FIRST, RETRY_LAST = 0.0005, 0.02
"""Seconds between a parked sender's first tries, and between its later ones."""

TOGETHER = 64
"""Messages in a record at most."""
WATCH_NS = 20_000
"""Nanoseconds for which a patient receiver watches its rings between two turns of the event loop."""

_CONTROL = frozenset(CONTROL)
_log = structlog.get_logger(__name__)


class Lane(Protocol):
    """What an edge's two rings offer: `runtime.ring.Ring` or its in-memory twin."""

    limit: int
    """Bytes of the longest payload that it takes."""

    def write_nowait(self, payload: bytes, incarnation: int) -> bool:
        """Publish one record; False when there is no room now."""

    def read_batch(self, limit: int) -> Batch | None:
        """Take up to `limit` records of one incarnation; PeerError when the first is bad."""

    def resync(self) -> int:
        """Skip everything unread; returns the bytes skipped."""

    def used(self) -> int:
        """Bytes unread."""


class Bell(Protocol):
    """What wakes a receiver: `runtime.doorbell.Doorbell` or its in-memory twin."""

    @property
    def ring(self) -> Callable[[], None]:
        """Wake the owner."""

    @property
    def rest(self) -> Callable[[], None]:
        """The owner is going to wait."""

    @property
    def clear(self) -> Callable[[], None]:
        """Make it silent."""

    async def wait(self) -> None:
        """Sleep until it rings."""


class Mail(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """A message, the name of the actor that sent it, and that actor's incarnation."""

    source: str
    message: T
    incarnation: int = 0


class Inbox(Generic[T]):
    """All mail to one actor. `sources` maps a sender's name to its (control, data) rings."""

    def __init__(
        self,
        doorbell: Bell,
        sources: Mapping[str, tuple[Lane, Lane]],
        decoder: Decoder[T],
    ) -> None:
        self._bell = doorbell
        control = [(name, lanes[0]) for name, lanes in sources.items()]
        self._lanes = control + [(name, lanes[1]) for name, lanes in sources.items()]
        self._first_data = len(control)
        self._decode = decoder.batch
        self._patience = Patience()
        self._watch = watcher(lane for _, lane in self._lanes)
        self._run: trio.lowlevel.TrioToken | None = None
        self._latest: dict[Lane, int] = {}
        self.received = 0
        """Messages so far."""
        self.dropped = 0

    def receive_nowait(self, limit: int = 256) -> list[Mail[T]]:
        """The mail of up to `limit` records, control first; raises trio.WouldBlock when there is none.

        What one `send_nowait` sent together arrives together. The data rings take turns at being first.
        """
        mails = self._look(limit)
        if not mails:
            raise trio.WouldBlock
        return mails

    async def receive(self, limit: int = 256) -> list[Mail[T]]:
        """Like `receive_nowait`, waiting for the first. A checkpoint; cancelled, it has taken nothing."""
        await trio.lowlevel.checkpoint_if_cancelled()
        mails = self._look(limit)
        if not mails:
            return await self._wait(limit)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return mails

    async def _wait(self, limit: int) -> list[Mail[T]]:
        """Look again while patience lasts, then park on the doorbell. A checkpoint on every way out."""
        self._wind_up()
        while True:
            until = perf_counter_ns() + self._patience.nanoseconds
            while perf_counter_ns() < until:
                self._watch(WATCH_NS)
                await trio.lowlevel.checkpoint()
                if mails := self._look(limit):
                    self._patience.found()
                    return mails
            self._bell.rest()
            if mails := self._look(limit):
                self._bell.clear()
                await trio.lowlevel.cancel_shielded_checkpoint()
                return mails
            start = perf_counter_ns()
            await self._bell.wait()
            waited = perf_counter_ns() - start
            self._bell.clear()
            mails = self._look(limit)
            self._patience.parked(waited if mails else SHORT_WAIT_NS)
            if mails:
                return mails

    def _wind_up(self) -> None:
        """Start this run's metronome, once: cheaper than a deadline for every wait."""
        run = trio.lowlevel.current_trio_token()
        if self._run is not run:
            self._run = run
            trio.lowlevel.spawn_system_task(self._metronome)

    async def _metronome(self) -> None:
        """Ring the own bell at a slow period, so that no lost wake-up can hang the actor."""
        while True:
            await trio.sleep(RELOOK)
            self._bell.ring()

    def _look(self, limit: int) -> list[Mail[T]]:
        """Take what is there, possibly nothing."""
        mails: list[Mail[T]] = []
        for name, lane in self._lanes:
            limit -= self._take(name, lane, limit, mails)
        if mails:
            self._lanes.append(self._lanes.pop(self._first_data))
            self.received += len(mails)
        return mails

    def _take(self, name: str, lane: Lane, limit: int, mails: list[Mail[T]]) -> int:
        """Append the decoded mail of up to `limit` records of one ring; returns the records taken. What is
        dropped does not hide what lies behind it."""
        taken, before = 0, len(mails)
        while taken < limit and len(mails) == before:
            try:
                batch = lane.read_batch(limit - taken)
            except PeerError as error:
                self._drop(name, error, skipped_bytes=lane.resync())
                break
            if batch is None:
                break
            taken += len(batch[1])
            self._accept(name, lane, batch, mails)
        return taken

    def _accept(self, name: str, lane: Lane, batch: Batch, mails: list[Mail[T]]) -> None:
        """Decode a batch, unless its writer has been replaced."""
        incarnation, payloads = batch
        latest = self._latest.get(lane, 0)
        if incarnation < latest:
            stale = PeerError(f"incarnation {incarnation} wrote after incarnation {latest}")
            self._drop(name, stale, skipped_bytes=sum(map(len, payloads)))
            return
        self._latest[lane] = incarnation
        decode, put = self._decode, mails.append
        for payload in payloads:
            try:
                for message in decode(payload):
                    put(Mail(name, message, incarnation))
            except PeerError as error:
                self._drop(name, error, skipped_bytes=len(payload))

    def _drop(self, name: str, error: PeerError, skipped_bytes: int) -> None:
        self.dropped += 1
        _log.error("mail dropped", source=name, error=str(error), skipped_bytes=skipped_bytes)

    def depth(self) -> int:
        """Bytes unread in all rings."""
        return sum(lane.used() for _, lane in self._lanes)


def inbox_for(accepts: Any, doorbell: Bell, sources: Mapping[str, tuple[Lane, Lane]]) -> Inbox[Any]:
    """The inbox of an actor whose union of messages is `accepts`."""
    return Inbox(doorbell, sources, Decoder(accepts))


def _sending(_outbox: Outbox, _to: str, *messages: Message) -> str:
    """The failpoints around `send_nowait`, by what is sent."""
    return f"send.{type(messages[0]).__name__}" if messages else "send.nothing"


class Outbox:
    """All ways out of one actor. `destinations` maps a name to its (control ring, data ring, doorbell)."""

    def __init__(
        self,
        incarnation: int,
        destinations: Mapping[str, tuple[Lane, Lane, Bell]],
    ) -> None:
        self._incarnation = incarnation
        self._ways = dict(destinations)
        self.sent = 0
        """Messages so far."""
        self.destinations = list(destinations)

    @around(_sending)
    def send_nowait(self, to: str, *messages: Message) -> None:
        """Publish the messages in order, ring once. Raises trio.WouldBlock at the first one without room:
        those before it are sent, it and those after it are not. Raises ValueError for a message that can
        never fit and KeyError for an unknown destination."""
        control, data, bell = self._ways[to]
        if len(messages) == 1 and type(messages[0]) not in _CONTROL:  # nearly all mail
            if not data.write_nowait(encode_batch(messages), self._incarnation):
                raise trio.WouldBlock
            bell.ring()
            self.sent += 1
        else:
            self._send_in_parts(control, data, bell, messages)

    def _send_in_parts(self, control: Lane, data: Lane, bell: Bell, messages: Sequence[Message]) -> None:
        """Bursts and control mail."""
        sent = 0
        try:
            for is_control, batch in _batches(messages):
                done = self._publish(control if is_control else data, batch)
                sent += done
                if done < len(batch):
                    raise trio.WouldBlock
        finally:
            bell.ring()
            self.sent += sent

    def _publish(self, lane: Lane, batch: Sequence[Message]) -> int:
        """Write the batch as one record, or as one record each where that is too big; returns how many."""
        payload = encode_batch(batch)
        if len(payload) <= lane.limit and lane.write_nowait(payload, self._incarnation):
            return len(batch)
        for done, message in enumerate(batch):
            if not lane.write_nowait(encode_batch((message,)), self._incarnation):
                return done
        return len(batch)

    async def send(self, to: str, message: Message) -> None:
        """Publish one message, waiting for room. A checkpoint; cancelled, it has sent nothing.

        A full ring is rare and its consumer busy, so the sender tries again on a timer instead of asking
        for a bell of its own: no wake-up can be lost.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        for pause in _pauses():
            try:
                self.send_nowait(to, message)
            except trio.WouldBlock:
                await trio.sleep(pause)
            else:
                break
        await trio.lowlevel.cancel_shielded_checkpoint()


def _batches(messages: Sequence[Message]) -> Iterator[tuple[bool, Sequence[Message]]]:
    """Cut into (is control mail, messages for one record), in order."""
    runs: Iterable[tuple[bool, Iterable[Message]]] = ((False, messages),)
    if not _CONTROL.isdisjoint(map(type, messages)):
        runs = groupby(messages, lambda message: type(message) in _CONTROL)
    for is_control, run in runs:
        together = tuple(run)
        for start in range(0, len(together), TOGETHER):
            yield is_control, together[start : start + TOGETHER]


def _pauses() -> Iterator[float]:
    pause = RETRY_FIRST
    while True:
        yield pause
        pause = min(2 * pause, RETRY_LAST)
