"""When steps are launched and when that is over, as a Chrome trace, where there is no torch to tell more."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import msgspec


class StepRecording:
    """From now on until `stop`."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Around a launch."""
        since = time.monotonic_ns()
        yield
        took, pid = time.monotonic_ns() - since, os.getpid()
        at = {"ts": since / 1000, "dur": took / 1000, "pid": pid, "tid": pid}
        self._events.append({"ph": "X", "cat": "step", "name": name, **at})

    def stop(self) -> None:
        """Nothing more is recorded."""

    def save(self, path: str) -> None:
        """Write the trace. OSError where that fails."""
        with open(path, "wb") as file:
            file.write(msgspec.json.encode({"traceEvents": self._events}))
