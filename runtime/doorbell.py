"""The one eventfd of an actor: rung by whoever has put mail into one of its rings.

Senders publish first and ring second, always; the owner lies down (`rest`) first and looks second, and waits
only after such a look. So mail is seen either by that look or by the bell. Rings are never counted and carry
nothing.

A word in shared memory says whether the owner is awake: it will look before it sleeps, so nobody need ring.
That wants a fence between publishing and reading the word, and one between lying down and looking, which only
compiled code has (`runtime/native.cpp`). Without it a sender always rings, and an owner never says that it is
awake, so the two kinds get on with each other. An owner that dies awake is no harm: the next one begins with
a look.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from runtime.failpoints import around
from runtime.native import Bell, native


class PythonBell:
    """The bell where there is no compiled one."""

    def __init__(self, fd: int, awake: memoryview | None) -> None:
        self._fd = fd
        self._awake = awake

    def ring(self) -> None:
        """Whether the owner is awake cannot be known."""
        if self._fd < 0:
            return
        try:  # not contextlib.suppress, which costs more than the system call
            os.eventfd_write(self._fd, 1)
        except BlockingIOError:  # 2**64 - 2 unheard rings: it rings already
            return

    def rest(self) -> None:
        """A predecessor may have been awake."""
        if self._awake is not None:
            self._awake[0] = 0

    def clear(self) -> None:
        """Make it silent."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return

    def release(self) -> None:
        """From now on it is silent."""
        self._fd, self._awake = -1, None


class Doorbell:
    """An eventfd: any process may `ring`, one task of its owner may `wait`. awake: the word of the owner's
    being awake (`protocols.board.Column.AWAKE`); None: it sleeps for all one knows."""

    __slots__ = ("_bell", "clear", "fd", "rest", "ring")

    def __init__(self, fd: int, awake: memoryview | None = None) -> None:
        self.fd = fd
        compiled = native()
        self._bell: Bell = compiled.Bell(fd, awake) if compiled else PythonBell(fd, awake)
        self.ring: Callable[[], None] = around("bell")(self._bell.ring)
        """Wake the owner, now or when it next waits. Never blocks; a closed bell is silent."""
        self.rest: Callable[[], None] = self._bell.rest
        """The owner is going to wait: to be followed by a look."""
        self.clear: Callable[[], None] = self._bell.clear
        """Make it silent, as the owner is awake; look for mail after this, not before."""

    @classmethod
    def create(cls, awake: memoryview | None = None) -> Doorbell:
        """A new silent bell."""
        return cls(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), awake)

    @classmethod
    def attach(cls, fd: int, awake: memoryview | None = None) -> Doorbell:
        """The bell behind an inherited descriptor, which the object owns from now on."""
        os.set_blocking(fd, False)
        return cls(fd, awake)

    async def wait(self) -> None:
        """Sleep until it rings."""
        await trio.lowlevel.wait_readable(self.fd)

    def close(self) -> None:
        """Close the descriptor."""
        self._bell.release()
        os.close(self.fd)
        self.fd = -1
