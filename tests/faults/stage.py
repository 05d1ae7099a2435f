"""A company in a process of its own, and what a test may do to it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from runtime import admin
from tests.faults.players import source_root
from tests.patience import PATIENCE

T = TypeVar("T")


def until(look: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
    """Look again and again until there is something to see."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if seen := look():
            return seen
        time.sleep(0.005)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def state_of(pid: int) -> str:
    """What a process does, by the kernel's letter (proc(5)); "" where there is none."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return state_of(pid) not in ("", "Z")


def children_of(pid: int) -> dict[int, str]:
    """A process's children and their states, zombies ("Z") included."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found[int(path.parent.name)] = fields[0]
    return found


def descriptors_of(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class Stage:
    """A running company. `errors` holds what it wrote to stderr."""

    def __init__(
        self, kind: str, tmp_path: pathlib.Path, *, socket: str = "", drain: float = 5.0, port: int = 0
    ):
        self.name = f"test-{uuid.uuid4().hex[:12]}"
        self.address = admin.address(self.name, socket)
        self._log = tmp_path / f"{self.name}.txt"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.run", kind, self.name, socket, str(drain), str(port)],
                cwd=source_root(),
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    @property
    def errors(self) -> str:
        return self._log.read_text()

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        return admin.ask(self.address, {"verb": verb, **fields})

    def status(self) -> dict[str, Any] | None:
        """What the company says of itself; None while nobody answers."""
        with contextlib.suppress(admin.Unreachable):
            return self.ask("status")
        return None

    def actor(self, name: str) -> dict[str, Any]:
        status = self.status()
        assert status is not None, self.errors
        (found,) = [actor for actor in status["actors"] if actor["name"] == name]
        return dict(found)

    def pids(self) -> list[int]:
        status = self.status()
        assert status is not None, self.errors
        return [actor["pid"] for actor in status["actors"] if actor["pid"]]

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.errors
            status = self.status()
            return status is not None and status["state"] == "ready"

        until(ready, "ready")

    def wait_actor(self, name: str, seconds: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Wait until all `fields` of an actor are as given."""

        def fits() -> dict[str, Any] | None:
            actor = self.actor(name)
            return actor if all(actor[key] == value for key, value in fields.items()) else None

        return until(fits, f"{name} {fields}", seconds)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to an actor, as soon as it is there; returns its process id."""
        pid = until(lambda: int(self.actor(name)["pid"]), f"{name} to have a process")
        os.kill(pid, number)
        return pid

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = PATIENCE) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def playing(
    kind: str,
    tmp_path: pathlib.Path,
    *,
    ready: bool = True,
    socket: str = "",
    drain: float = 5.0,
    port: int = 0,
) -> Iterator[Stage]:
    """A company for the length of a test."""
    stage = Stage(kind, tmp_path, socket=socket, drain=drain, port=port)
    try:
        if ready:
            stage.wait_ready()
        yield stage
    finally:
        if stage.process.poll() is None:
            stage.process.kill()
            stage.process.wait(PATIENCE)
