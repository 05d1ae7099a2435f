"""Start a real company for a test, as a user would: `actorctl serve` in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from runtime import admin

ROOT = pathlib.Path(__file__).resolve().parent.parent
ACTORCTL = (sys.executable, "-m", "tools.actorctl.main")
START_SECONDS = 240.0


def actorctl(*arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run one actorctl command to its end."""
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
    host: str = "127.0.0.1"
    port: int = 0
    model: str = ""

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
        """SIGKILL an actor; its former pid."""
        pid = self.pids()[actor]
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
    name = f"test-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "stderr"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*ACTORCTL, "serve", *([model] if model else []), "--name", name, "--port", "0", *options],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **(environment or {})},
            )
        company = Company(name, process, log)
        try:
            _await_ready(company)
            yield company
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(30)


def _await_ready(company: Company) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if company.process.poll() is not None:
            raise RuntimeError(f"the company ended ({company.process.returncode}):\n{company.stderr()}")
        with contextlib.suppress(admin.Unreachable, TimeoutError):
            document = admin.ask(admin.address(company.name), {"verb": "status"})
            if document["state"] == "ready":
                company.host, company.port = document["host"], document["port"]
                company.model = document["model"]
                return
        time.sleep(0.1)
    raise RuntimeError(f"not ready after {START_SECONDS} s:\n{company.stderr()}")
