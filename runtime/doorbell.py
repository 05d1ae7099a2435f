"""The one eventfd of an actor: rung by whoever has put mail into one of its rings.

Senders publish first and ring second, always; the owner clears first and looks second, and waits only
after such a look. The kernel's lock inside the eventfd orders the two, so mail is seen either by that look
or by the bell that is still ringing. Rings are never counted and carry nothing.
"""

from __future__ import annotations

import os

import trio

from runtime.failpoints import around


class Doorbell:
    """An eventfd: any process may `ring`, one task of its owner may `wait`."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> Doorbell:
        """A new silent bell."""
        return cls(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    @classmethod
    def attach(cls, fd: int) -> Doorbell:
        """The bell behind an inherited descriptor, which the object owns from now on."""
        os.set_blocking(fd, False)
        return cls(fd)

    @around("bell")
    def ring(self) -> None:
        """Wake the owner, now or when it next waits. Never blocks; a closed bell is silent."""
        if self.fd < 0:
            return
        try:  # not contextlib.suppress, which costs more than the system call
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:  # 2**64 - 2 unheard rings: it rings already
            return

    def clear(self) -> None:
        """Make it silent; look for mail after this, not before."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return

    async def wait(self) -> None:
        """Sleep until it rings."""
        await trio.lowlevel.wait_readable(self.fd)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
        self.fd = -1
