"""Files that the supervisor holds open for its actors: they outlive their names, and their writers.

An actor opens one under its path in /proc. Whatever is held goes with the supervisor: nothing is left behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from protocols.config import Keep
from protocols.errors import VerbError
from protocols.free_memory import available_memory
from protocols.weights import File


class Holdings:
    """Held files by the path under which actors open them."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._leasing = False
        self._leased: set[str] = set()

    def hold(self, path: str, name: str) -> File:
        """Hold a regular file that is not empty, as `name`. Raises VerbError where it cannot be read."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            code = "not_found" if error.errno in (errno.ENOENT, errno.ENOTDIR) else "usage"
            raise VerbError(code, f"cannot read {path}: {error.strerror}.") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            os.close(fd)
            what = "empty" if stat.S_ISREG(status.st_mode) else "not a regular file"
            raise VerbError("usage", f"{path} is {what}.")
        held = self._file(fd, name)
        if self._leasing:
            self._lease(held.path)
        return held

    def keep(self, path: str, name: str, how: Keep) -> File:
        """Hold a regular file, known as `name`, or a copy of it. May take a while: use a thread. Raises
        VerbError."""
        return self.keep_held(self.hold(path, name), how)

    def keep_held(self, held: File, how: Keep) -> File:
        """A held file, or a copy of it in its place. May take a while: use a thread. Raises VerbError."""
        if how is Keep.OPEN:
            return held
        try:
            return self.copy(held, held.name)
        finally:
            self.drop(held)

    def intact(self, file: File) -> bool:
        """Whether nobody has written to a held file since."""
        return file.path in self._fds and _stamp(self._fds[file.path]) == file.stamp

    def blob(self, name: str) -> File:
        """Hold a new empty file in memory, which an actor may write."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        return self._file(fd, name)

    def copy(self, source: File, name: str) -> File:
        """Hold a copy in memory of a held file, of the same stamp, which nobody can write. May take a while:
        use a thread. Raises VerbError where memory runs out, or somebody writes to the file meanwhile."""
        if source.stamp[0] > available_memory():
            raise VerbError("failed", f"cannot keep {name}: there is no memory for {source.stamp[0]} bytes.")
        copied = self.blob(name)
        fd, left = self._fds[source.path], source.stamp[0]
        try:
            while left > 0 and (
                done := os.sendfile(self._fds[copied.path], fd, source.stamp[0] - left, left)
            ):
                left -= done
        except OSError as error:
            self.drop(copied)
            raise VerbError("failed", f"cannot keep {name}: {error.strerror}.") from error
        if left or _stamp(fd) != source.stamp:
            self.drop(copied)
            raise VerbError("usage", f"{name} has been written to while it was read.")
        os.utime(self._fds[copied.path], ns=(source.stamp[1], source.stamp[1]))
        return self.seal(copied)

    def seal(self, blob: File) -> File:
        """Forbid any further writing to a file in memory."""
        fd = self._fds[blob.path]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        return File(blob.name, blob.path, _stamp(fd))

    def drop(self, file: File) -> None:
        """Let go of a file."""
        self._leased.discard(file.path)
        with contextlib.suppress(KeyError):
            os.close(self._fds.pop(file.path))

    # Files that somebody else is about to write to: see `runtime.guarding`.

    def lease(self) -> None:
        """From now on SIGIO tells of whoever opens a held file to write to it, and is kept waiting."""
        self._leasing = True
        for path in self._fds:
            self._lease(path)

    def _lease(self, path: str) -> None:
        with contextlib.suppress(OSError):  # where none can be had
            fcntl.fcntl(self._fds[path], fcntl.F_SETLEASE, fcntl.F_RDLCK)
            self._leased.add(path)

    def threatened(self) -> list[str]:
        """Paths of the files for which somebody is waiting."""
        return [
            path for path in self._leased if fcntl.fcntl(self._fds[path], fcntl.F_GETLEASE) != fcntl.F_RDLCK
        ]

    def again(self, path: str) -> File:
        """Hold a held file a second time, independently of the first."""
        fd = os.dup(self._fds[path])
        return self._file(fd, os.readlink(path))

    def replace(self, path: str, copied: File) -> None:
        """Put a copy in the place of a held file, if it is still held."""
        if path in self._fds:
            os.dup2(self._fds[copied.path], self._fds[path], inheritable=False)
        self.drop(copied)

    def give_way(self, path: str, original: File) -> None:
        """Let whoever waits to write to a file do so. original: as `again` returned it."""
        self._leased.discard(path)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._fds[original.path], fcntl.F_SETLEASE, fcntl.F_UNLCK)
        self.drop(original)

    def _file(self, fd: int, name: str) -> File:
        path = f"/proc/{os.getpid()}/fd/{fd}"
        self._fds[path] = fd
        return File(name, path, _stamp(fd))


def _stamp(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns
