"""A TCP connection whose writes never park, and which notices a vanished peer at any time.

    write_nowait ── room? ──► kernel            (no task switch: the token path)
              └─── no room ─► backlog ──► writer task, once the socket takes more

One task always reads, so the end of the peer is seen while a handler computes; it stops at a bound of
unread bytes. Another writes what did not fit, while there is something. A peer that takes nothing for
`write_seconds`, or lets more than `max_backlog` bytes pile up, is lost: nobody waits for it, and `scope` is
cancelled.
"""

from __future__ import annotations

import contextlib
import enum
import socket
from collections.abc import Callable, Iterator

import trio

from runtime.tls import Tls

READ_SIZE = 65536
MAX_UNREAD = 262144
"""Bytes read ahead of whoever processes them."""
UNSENT_LOW_WATER = 131072
"""Bytes that the kernel takes before the socket counts as full: beyond it, text is merged, not queued."""
PEER_TIMEOUT_MS = 60_000


class Loss(enum.StrEnum):
    """Why a connection is over."""

    CLOSED = "closed by the peer"
    STALLED = "the peer stopped reading"
    OVERFLOW = "too much unsent data"


class Transport:
    """Wraps a connected non-blocking socket, once it has been started."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        tls: Tls | None = None,
        write_seconds: float = 30.0,
        max_backlog: int = 16 * 1024 * 1024,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._tls = tls
        self._write_seconds = write_seconds
        self._max_backlog = max_backlog
        self._unread = bytearray()
        self._arrived = trio.Event()
        self._room = trio.Event()
        self._backlog = bytearray()
        self._nursery: trio.Nursery | None = None
        self._drained = trio.Event()
        self._ends_after_backlog = False
        self._closed = False
        self._scope: trio.CancelScope | None = None
        self.loss: Loss | None = None
        self.on_drained: Callable[[], None] | None = None

    @property
    def ready(self) -> bool:
        """Whether a write goes straight to the kernel: nothing is queued, the peer is there."""
        return not self._backlog and self.loss is None and not self._closed

    @property
    def over(self) -> bool:
        """Whether the peer is lost or our side closed."""
        return self.loss is not None or self._closed

    @property
    def backlog(self) -> int:
        """Bytes written that the kernel has not taken."""
        return len(self._backlog)

    @contextlib.contextmanager
    def cancelled_when_lost(self) -> Iterator[trio.CancelScope]:
        """A block that is cancelled as soon as the peer is lost."""
        with trio.CancelScope() as scope:
            self._scope = scope
            if self.loss is not None:
                scope.cancel()
            try:
                yield scope
            finally:
                self._scope = None

    async def shake_hands(self) -> bool:
        """Before `start`: the TLS handshake; False where the peer does not manage it. The caller sets the
        deadline."""
        while self._tls is not None and not self._tls.established:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(READ_SIZE)
                self._tls.shake(data)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            self._write_raw(self._tls.pending())
            if not data or self.over:
                return False
        return self._tls is None or self._take_in(b"")

    def start(self, nursery: trio.Nursery) -> None:
        """Read and write until the peer is lost, in tasks that whoever owns the connection cancels."""
        self._nursery = nursery
        nursery.start_soon(self._read)
        if self._backlog:
            nursery.start_soon(self._write)

    async def receive(self) -> bytes:
        """Some bytes, as soon as there are any; b"" after the end."""
        while not self._unread and not self.over:
            self._arrived = _rearmed(self._arrived)
            await self._arrived.wait()
        data = bytes(self._unread)
        self._unread.clear()
        self._room.set()
        return data

    def write_nowait(self, data: bytes) -> None:
        """Send `data` after everything written before; whatever the kernel does not take now is queued."""
        if self.loss is not None or self._closed:
            return
        if self._tls is not None:
            try:
                data = self._tls.encrypt(data)
            except OSError:
                self._lose(Loss.CLOSED)
                return
        self._write_raw(data)

    def _write_raw(self, data: bytes) -> None:
        if self._backlog:
            self._backlog += data
            if len(self._backlog) > self._max_backlog:
                self._lose(Loss.OVERFLOW)
            return
        sent = self._send(data)
        if sent < len(data) and self.loss is None:
            self._backlog += memoryview(data)[sent:]
            if self._nursery is not None:
                self._nursery.start_soon(self._write)

    async def drained(self) -> None:
        """Park until the kernel has taken everything, or the peer is lost."""
        while self._backlog and not self.over:
            self._drained = _rearmed(self._drained)
            await self._drained.wait()

    def end_writing(self) -> None:
        """Half-close once everything written is with the kernel."""
        self._ends_after_backlog = True
        if not self._backlog:
            self._shut_down()

    async def linger(self, seconds: float) -> None:
        """Half-close, then read and discard until the peer closes too: an answer that was sent before
        the whole request was read would otherwise be lost to a reset."""
        with trio.move_on_after(seconds):
            await self.drained()
            self.end_writing()
            while await self.receive():
                pass

    def close(self) -> None:
        """Give the socket back; idempotent."""
        if self._closed:
            return
        if self._tls is not None and not self.over:
            self._send(self._tls.end())
        self._closed = True
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._lose(Loss.CLOSED)
            return 0

    def _shut_down(self) -> None:
        if self._tls is not None:
            self._send(self._tls.end())
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _lose(self, loss: Loss) -> None:
        if self.loss is None:
            self.loss = loss
        self._arrived.set()
        self._drained.set()
        if self._scope is not None:
            self._scope.cancel()

    async def _read(self) -> None:
        while not self.over:
            while len(self._unread) >= MAX_UNREAD:
                self._room = _rearmed(self._room)
                await self._room.wait()
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(READ_SIZE)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data or not self._take_in(data):
                self._lose(Loss.CLOSED)
                return
            self._arrived.set()

    def _take_in(self, data: bytes) -> bool:
        """Add received bytes to the unread ones; False at the end, or where they are not valid TLS."""
        if self._tls is None:
            self._unread += data
            return True
        try:
            plain, ends = self._tls.decrypt(data)
        except OSError:
            return False
        self._unread += plain
        if answer := self._tls.pending():
            self._write_raw(answer)
        return not ends

    async def _write(self) -> None:
        """Until the backlog is empty."""
        while self._backlog and not self.over:
            await self._write_some()
        self._drained.set()
        if self._ends_after_backlog:
            self._shut_down()
        if self.on_drained is not None and not self.over:
            self.on_drained()

    async def _write_some(self) -> None:
        with trio.move_on_after(self._write_seconds) as patience:
            await trio.lowlevel.wait_writable(self._sock)
        if patience.cancelled_caught:
            self._lose(Loss.STALLED)
            return
        sent = self._send(self._backlog)
        del self._backlog[:sent]


def _rearmed(event: trio.Event) -> trio.Event:
    return trio.Event() if event.is_set() else event


def prepare(sock: socket.socket) -> None:
    """Options of a connection that streams small pieces: no delay, a small kernel queue, dead peers found."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LOW_WATER)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
