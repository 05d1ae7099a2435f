"""Starting one process for one incarnation of an actor (or an understudy), and killing and reaping it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import msgspec

from runtime.wiring import Part

ROOT = pathlib.Path(__file__).resolve().parent.parent
"""Where the packages lie, wherever the company was started from."""


class Process:
    """A running incarnation. It leads its own session, so that a Ctrl-C on the terminal reaches only the
    supervisor, and its process group holds whatever it started itself."""

    def __init__(self, part: Part, env: Mapping[str, str]) -> None:
        """Start it. Raises OSError when the system has no process or descriptor left."""
        with _in_memory(msgspec.msgpack.encode(part)) as fd:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "runtime.process", str(fd), part.name],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(fd, *part.descriptors()),
                env={**os.environ, "PYTHONPATH": _search_path(), **env},
                start_new_session=True,
            )
        self.pid = self._popen.pid
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._popen.kill()
            self._popen.wait()
            raise

    def is_dead(self) -> bool:
        """Whether only the reaping is left."""
        return os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process; nothing happens when it is dead already."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """SIGKILL it and whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for the death (at once when `pidfd` is readable); its exit code, or minus the signal.

        Its group is killed before the zombie is gone, for that keeps the number from being used again. What
        the process had started itself is this process's child now (`kin.adopt_orphans`), and reaped too.
        """
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        self.kill()
        code = self._popen.wait()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-self.pid, 0)
        os.close(self.pidfd)
        return code


@dataclasses.dataclass(frozen=True)
class Launched:
    """A process and what its starter holds of it. reports: read end of its reports; line: our end of the
    line of its orders."""

    process: Process
    reports: int
    line: socket.socket


def launch(part: Callable[[int, int], Part], env: Mapping[str, str]) -> Launched:
    """Start a process. part: makes it of the descriptors of its ends, of the pipe of its reports and of the
    line of its orders. Raises OSError as Process does."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        ours.callback(os.close, reader)
        theirs.callback(os.close, writer)
        os.set_blocking(reader, False)
        line, end = socket.socketpair()
        ours.callback(line.close)
        theirs.callback(end.close)
        launched = Launched(Process(part(writer, end.fileno()), env), reader, line)
        ours.pop_all()
        return launched


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """A descriptor of a file without a name that holds `data`."""
    fd = os.memfd_create("part", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def _search_path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def oom_kills() -> int:
    """Processes that the kernel of this machine has killed so far because memory ran out."""
    for line in pathlib.Path("/proc/vmstat").read_text().splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0


def ending(code: int, sentence: str) -> str:
    """How a process ended, as the predicate of a sentence; `sentence`: what it said about it, if anything."""
    if code < 0:
        return f"was killed by {_SIGNALS.get(-code, f'signal {-code}')}"
    if sentence:
        return f"failed with {sentence}"
    return "returned though nobody had asked it to" if code == 0 else f"exited with code {code}"


_SIGNALS = {each.value: each.name for each in signal.Signals}
