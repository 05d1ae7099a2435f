"""An executor's part in a profile: what its steps do is recorded, and written to a file when enough have run
or the supervisor says so. While nothing is recorded, a step pays nothing: `launch` is the executor's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from protocols.errors import StartError, VerbError
from protocols.orders import Answer, Done, Order, Profiled, StartProfile, StopProfile
from protocols.plan import Plan
from runtime.actor import Context
from runtime.orders import Handler


class Recording(Protocol):
    """See `gpu.recording.TorchRecording` and `gpu.step_recording.StepRecording`."""

    def step(self, name: str) -> AbstractContextManager[Any]:
        """Around a launch."""

    def stop(self) -> None:
        """Record no more."""

    def save(self, path: str) -> None:
        """Write it. OSError or RuntimeError where that fails."""


class Recorded(Protocol):
    """What can be recorded."""

    def launch(self, plan: Plan) -> Any:
        """Begin a step; the result is a flight."""

    def record(self, wish: StartProfile) -> Recording:
        """What is launched from now on. StartError where nothing of what is wished for is here."""


class Profiling:
    """Of one executor. launch: the executor's. otherwise: takes all other orders."""

    def __init__(self, context: Context[Any], executor: Recorded, otherwise: Handler) -> None:
        self.launch: Callable[[Plan], Any] = executor.launch
        self._context = context
        self._executor = executor
        self._otherwise = otherwise
        self._recording: Recording | None = None
        self._wish: StartProfile | None = None
        self._steps = 0
        self._failure = ""

    async def obey(self, order: Order) -> Answer:
        """Carry out an order."""
        match order:
            case StartProfile():
                self._start(order)
                return Done()
            case StopProfile(path, keep):
                return self._stop(path, keep=keep)
            case _:
                return await self._otherwise(order)

    def _start(self, wish: StartProfile) -> None:
        name = self._context.name
        if self._recording is not None:
            raise VerbError("conflict", f"{name} is being profiled already.")
        try:
            with self._context.busy():
                recording = self._executor.record(wish)
        except StartError as error:
            raise VerbError("conflict", f"{name}: {error}") from error
        self._recording, self._wish, self._steps, self._failure = recording, wish, 0, ""

        def launch(plan: Plan) -> Any:
            with recording.step(f"step {plan.step}"):
                flight = self._executor.launch(plan)
            self._steps += 1
            if self._steps == wish.steps:
                self._end(recording, wish.path)
            return flight

        self.launch = launch

    def _stop(self, path: str, *, keep: bool) -> Profiled:
        if self._wish is None or self._wish.path != path:
            raise VerbError("not_found", f"{self._context.name} has been replaced, and its profile is lost.")
        if self._recording is not None:
            self._end(self._recording, path if keep else "")
        if self._failure:
            raise VerbError("failed", self._failure)
        return Profiled(self._steps, os.path.getsize(path) if keep else 0)

    def _end(self, recording: Recording, path: str) -> None:
        """Record no more, and write what there is to `path`, if that is not ""; a file that is there is
        whole."""
        self._recording, self.launch = None, self._executor.launch
        part = f"{path}.part"
        with self._context.busy():
            recording.stop()
            if not path:
                return
            try:
                recording.save(part)
                os.replace(part, path)
            except (OSError, RuntimeError) as error:
                self._failure = f"{self._context.name} cannot write {path}: {error}."
