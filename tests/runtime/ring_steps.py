"""Look at a ring after every single machine instruction of a write: wherever the producer is killed, a
consumer finds nothing of the record, or all of it.

`python -m tests.runtime.ring_steps` prints how many instructions were looked behind. Exit code 77: this
machine lets nobody trace.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from runtime.ring import Ring

_TRACE_ME, _SINGLE_STEP = 0, 9
_HEAD = 16
_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

FIRST, SECOND = b"before", bytes(range(100))


def write_and_end(fd: int) -> None:
    """The traced process: stops, writes one record, ends."""
    ring = Ring.attach(fd)
    write = ring.write_nowait
    write(FIRST, 1)
    if _ptrace(_TRACE_ME, 0, None, None):
        os._exit(77)
    os.kill(os.getpid(), signal.SIGSTOP)
    write(SECOND, 1)
    os._exit(0)


def visible(ring: Ring) -> list[bytes]:
    """What a consumer that starts now would read; nothing is consumed."""
    consumer = Ring.attach(os.dup(ring.fd))
    batch = consumer.read_batch(10)
    consumer._words[_HEAD] = 0
    consumer.close()
    return [] if batch is None else batch[1]


def steps() -> int:
    """Instructions between the stop and the end of the process."""
    ring = Ring.create(4096)
    pid = os.fork()
    if pid == 0:
        write_and_end(ring.fd)
    count, seen = 0, 1
    while True:
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            break
        count += 1
        found = visible(ring)
        assert found == [FIRST, SECOND][: len(found)] and len(found) >= seen, found
        seen = len(found)
        if _ptrace(_SINGLE_STEP, pid, None, None):
            os.kill(pid, signal.SIGKILL)
    if os.WEXITSTATUS(status):
        sys.exit(os.WEXITSTATUS(status))
    assert visible(ring) == [FIRST, SECOND]
    return count


if __name__ == "__main__":
    print(f"{steps()} instructions")
