"""Engines under measurement: a runner process that speaks lines of JSON, or a server that speaks HTTP.

A peer is stopped (SIGSTOP, its whole process group) while it is not its turn, so that no engine's spinning or
polling threads slow another one down.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import trio

from tools.bench import load
from tools.bench.peers import requests
from tools.bench.peers.cases import Case, Prompts
from tools.bench.serve import summary

Figure = dict[str, Any]
"""{"seconds": of the whole case, "tokens": the answers' ids}, or of streams what `serve.summary` returns."""
START_SECONDS = 1800.0
"""To load and compile a model."""
CASE_SECONDS = 1800.0
_GRACE_SECONDS = 20.0
_TAIL = 2000


class Failed(Exception):
    """An engine died, did not answer in time or answered with an error."""


class Subject(Protocol):
    """An engine that has loaded its model."""

    version: str

    def batch(self, prompts: Prompts, output: int) -> Figure:
        """All prompts at once."""
        ...

    def streams(self, case: Case, texts: Sequence[str], socket: bool) -> Figure:
        """Closed-loop clients that share the texts."""
        ...


class Child:
    """A peer's process group, killed at the end, with its stderr in a file. piped: it is spoken to over its
    stdin and stdout; otherwise the first is empty and the second goes to that file too."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path, *, piped: bool = True
    ) -> None:
        self.log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else sink,
                stderr=sink,
                env={**os.environ, **environment},
                process_group=0,
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        """SIGTERM to the first process, which tidies up, then SIGKILL to all of the group.

        What Intel's OpenMP leaves in /dev/shm when it is killed goes too.
        """
        members = _members(self.process.pid)
        self.process.terminate()
        self.signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_SECONDS)
        self.signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        for pid in members:
            for left in pathlib.Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{pid}_*"):
                left.unlink(missing_ok=True)

    def signal(self, number: int) -> None:
        """To the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """It runs inside and is stopped afterwards."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def failure(self, what: str) -> Failed:
        """What happened, with the end of the log."""
        return Failed(f"{what}; its last words:\n{self.log.read_text(errors='replace')[-_TAIL:]}")


def _members(group: int) -> list[int]:
    """The process ids of a group."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(") ")[2].split()[2]) == group:
                found.append(int(stat.parent.name))
    return found


class Runner:
    """An engine behind `runners/runner.py`."""

    def __init__(self, child: Child, setup: Mapping[str, Any]) -> None:
        self._child, self._unread = child, b""
        with child.turn():
            self.version = str(self._ask(setup, START_SECONDS)["version"])

    def batch(self, prompts: Prompts, output: int) -> Figure:
        """See `Subject.batch`."""
        with self._child.turn():
            return self._ask({"prompts": prompts, "output": output}, CASE_SECONDS)

    def streams(self, case: Case, texts: Sequence[str], socket: bool) -> Figure:
        """It has no sockets."""
        raise NotImplementedError

    def _ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        process = self._child.process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._child.failure("it ended") from None
        answer: dict[str, Any] = json.loads(self._line(process.stdout.fileno(), time.monotonic() + seconds))
        if "error" in answer:
            raise self._child.failure(answer["error"])
        return answer

    def _line(self, fd: int, deadline: float) -> bytes:
        while b"\n" not in self._unread:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._child.failure("no answer in time")
            piece = os.read(fd, 1 << 20)
            if not piece:
                raise self._child.failure("it ended")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line


class Server:
    """An engine that serves OpenAI's API under the model name `bench`."""

    def __init__(self, host: str, port: int, version: str, child: Child | None = None) -> None:
        self._address, self.version, self._child = (host, port), version, child

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        return self._child.turn() if self._child else contextlib.nullcontext()

    def batch(self, prompts: Prompts, output: int) -> Figure:
        """See `Subject.batch`: a request each, over connections that are already open."""
        with self._turn():
            return trio.run(requests.together, *self._address, prompts, output, CASE_SECONDS)

    def streams(self, case: Case, texts: Sequence[str], socket: bool) -> Figure:
        """See `Subject.streams`. socket: over WebSocket and not HTTP."""
        workload = load.Workload("bench", case.clients, texts, case.output)
        dialogue: type[load.Dialogue] = load.SocketDialogue if socket else load.HttpDialogue
        with self._turn():
            run = load.run(*self._address, workload, dialogue)
        return {"seconds": run.seconds, **summary(run)}


def await_health(child: Child, url: str) -> None:
    """Let a server run until it answers 200."""
    with child.turn():
        _await_health(child, url)


def _await_health(child: Child, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if child.process.poll() is not None:
            raise child.failure(f"it ended with {child.process.returncode}")
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise child.failure("it was not ready in time")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
