"""What a company leaves in the system, or should not: processes, shared memory, descriptors, zombies."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

_PROC = pathlib.Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; OSError when there is no such process."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return _fields(pid)[0] != "Z"
    except OSError:
        return False


def processes() -> Iterator[int]:
    """All process ids that are to be seen."""
    return (int(path.name) for path in _PROC.glob("[0-9]*"))


def marked(mark: str) -> list[int]:
    """Living processes with `mark` in their environment, whoever their parent is."""
    found = []
    for pid in processes():
        with contextlib.suppress(OSError):
            if mark.encode() in (_PROC / str(pid) / "environ").read_bytes() and is_alive(pid):
                found.append(pid)
    return found


def children(pid: int) -> dict[int, str]:
    """A process's children and their states; "Z" is a zombie."""
    found = {}
    for child in processes():
        with contextlib.suppress(OSError):
            fields = _fields(child)
            if int(fields[1]) == pid:
                found[child] = fields[0]
    return found


def descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(_PROC / str(pid) / "fd"))


def private(pid: int) -> int:
    """The same without shared memory and files."""
    words = (_PROC / str(pid) / "statm").read_text().split()
    return (int(words[1]) - int(words[2])) * _PAGE


def shared_memory(pid: int) -> int:
    """Bytes that the shared-memory objects behind a process's descriptors take, names or not."""
    total = 0
    for path in (_PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith("/dev/shm/"):
                total += path.stat().st_blocks * 512
    return total


def shared_names() -> set[str]:
    """Names in /dev/shm."""
    return set(os.listdir("/dev/shm"))
