"""Start a real company for a test, as a user would: `actorctl serve` in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from click.testing import CliRunner

from runtime import admin
from tests.patience import PATIENCE
from tools.actorctl.main import main
from tools.launch import launched

ROOT = pathlib.Path(__file__).resolve().parent.parent
ACTORCTL = (sys.executable, "-m", "tools.actorctl.main")


def actorctl(*arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    """One actorctl command in this process: what it does is the same, and starting an interpreter takes
    longer. An exception that it lets out is raised. typed: what stands on its stdin."""
    done = CliRunner().invoke(main, arguments, input=typed, catch_exceptions=False)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def actorctl_process(*arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    return subprocess.run(
        [*ACTORCTL, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@dataclasses.dataclass
class Company:
    """A running company: its name for actorctl, its process and where it listens."""

    name: str
    process: subprocess.Popen[bytes]
    log: pathlib.Path
    host: str
    port: int
    model: str

    @property
    def url(self) -> str:
        """Base URL for OpenAI clients."""
        return f"http://{self.host}:{self.port}/v1"

    def status(self) -> dict[str, Any]:
        """What `actorctl status -o json` prints, without the time that a command takes to start."""
        try:
            return admin.ask(admin.address(self.name), {"verb": "status"}, timeout=60)
        except (admin.Unreachable, TimeoutError) as error:
            raise RuntimeError(f"status failed: {error}\n{self.stderr()}") from error

    def actor(self, name: str) -> dict[str, Any]:
        """One actor's entry of the status."""
        found: dict[str, Any] = next(actor for actor in self.status()["actors"] if actor["name"] == name)
        return found

    def pids(self) -> dict[str, int]:
        """Process ids by actor name."""
        return {actor["name"]: actor["pid"] for actor in self.status()["actors"]}

    def kill(self, actor: str) -> int:
        """SIGKILL an actor, as soon as it is there; its former pid."""
        deadline = time.monotonic() + PATIENCE
        while not (pid := self.pids()[actor]):
            assert time.monotonic() < deadline, f"{actor} does not come back\n{self.stderr()}"
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        return pid

    def stderr(self) -> str:
        """Everything the company has logged."""
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        """SIGTERM and wait; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(
    *options: str, model: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Company]:
    """A company that is ready to serve; killed, if it still runs, at the end."""
    options = (*([model] if model else []), *options)
    with launched(options, kind="test", environment=environment) as running:
        status = running.await_ready()
        where = status["host"], status["port"], status["model"]
        yield Company(running.name, running.process, running.log, *where)
