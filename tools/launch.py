"""A company in processes of its own, started as a user would: for whoever tests, measures or torments one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime import admin

START_SECONDS = 240.0
_ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass
class Launched:
    """A company that has been started. log: what it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: pathlib.Path

    @property
    def address(self) -> str:
        """Of its admin socket."""
        return admin.address(self.name)

    def said(self) -> str:
        """Everything that it has written."""
        return self.log.read_text(errors="replace")

    def await_ready(self, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Its status once every actor is ready. Raises RuntimeError, with what it said, where it never is."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the company ended with {self.process.returncode}:\n{self.said()}")
            with contextlib.suppress(admin.Unreachable, TimeoutError):
                status = admin.ask(self.address, {"verb": "status"})
                if status["state"] == "ready":
                    return status
            time.sleep(0.1)
        raise RuntimeError(f"not ready after {seconds:g} s:\n{self.said()}")


@contextlib.contextmanager
def launched(
    options: Sequence[str],
    *,
    kind: str,
    name: str = "",
    port: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Launched]:
    """A company that need not be ready yet; killed, if it still runs, at the end. options: of `actorctl
    serve`. name: one that begins with `kind` by default. port: a free one by default."""
    name = name or f"{kind}-{uuid.uuid4().hex[:12]}"
    command = [sys.executable, "-m", "tools.actorctl.main", "serve", "--name", name, "--port", str(port)]
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            )
        try:
            yield Launched(name, process, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
