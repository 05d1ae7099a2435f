"""Anonymous shared memory: made, unlinked at once, and afterwards known by its descriptor alone.

Nothing here has a name that outlives its creator, so a SIGKILL of every process leaves nothing in
/dev/shm. What must never fault is allocated when it is made: a full /dev/shm is then a sentence at
the start and not a SIGBUS on some later store.

Publication, anywhere in this project, is one aligned 8-byte store through a `memoryview` of format
"Q", after everything that it publishes has been written. x86-64 keeps stores in order (TSO), so
no fence is needed there; elsewhere `require_ordered_stores` refuses to start. A port to a weakly ordered
machine begins there, and needs one thing: `Mapping.words` whose item assignment begins with a release
fence and whose item access ends with an acquire fence, since every publication goes through it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import platform

import posix_ipc

from protocols.errors import StartError

WORD = 8
LINE = 64
"""Bytes of a cache line: words of different writers lie at least this far apart."""


def require_ordered_stores(machine: str = "") -> None:
    """Refuse (StartError) a machine whose stores other processors may see out of order."""
    machine = machine or platform.machine()
    if machine.lower() not in {"x86_64", "amd64"}:
        raise StartError(
            f"Troupe's shared memory needs the store order of x86-64, and this machine is {machine}: "
            "runtime/segment.py is the one place that wants fences."
        )


def create(size: int, reserve: int | None = None) -> int:
    """A new object of `size` zero bytes, its first `reserve` bytes (default: all) allocated for good.

    Returns its descriptor, which children inherit only when told to. Raises StartError when the
    machine is not fit for it or /dev/shm has no room.
    """
    require_ordered_stores()
    reserve = size if reserve is None else reserve
    fd = _nameless()
    try:
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, reserve)
    except OSError as error:
        os.close(fd)
        raise _refusal(reserve, error) from error
    return fd


def _nameless() -> int:
    try:
        shared = posix_ipc.SharedMemory(None, posix_ipc.O_CREX, mode=0o600)
    except (posix_ipc.Error, OSError) as error:
        raise StartError(f"cannot create shared memory in /dev/shm: {error}.") from error
    shared.unlink()
    fd: int = shared.fd
    return fd


def _refusal(size: int, error: OSError) -> StartError:
    if error.errno == errno.ENOSPC:
        return StartError(
            f"/dev/shm has no room for {size} bytes of shared memory; enlarge it (docker: --shm-size)."
        )
    return StartError(f"cannot allocate {size} bytes of shared memory: {error.strerror}.")


def size_of(fd: int) -> int:
    """Bytes of the object."""
    return os.fstat(fd).st_size


class Mapping:
    """A descriptor's first `size` bytes in this process: as bytes (`data`) and as u64 words (`words`)."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.data = mmap.mmap(fd, size, mmap.MAP_SHARED)
        self._view = memoryview(self.data)
        self.words = self._view.cast("Q")

    def close(self) -> None:
        """Unmap and close the descriptor; a second time is nothing."""
        self.words.release()
        self._view.release()
        self.data.close()
        with contextlib.suppress(OSError):
            os.close(self.fd)
