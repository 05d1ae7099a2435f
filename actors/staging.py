"""An executor's part in a change of weights: everything that takes time runs in a thread beside its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, assert_never

import trio

from protocols import weights
from protocols.errors import StartError, VerbError
from protocols.orders import Answer, Done, Order
from protocols.weights import (
    Commit,
    Discard,
    Examine,
    Found,
    Group,
    Join,
    Leave,
    Peek,
    Peeked,
    Receive,
    Shape,
    Stage,
    Staged,
    Survey,
    Surveyed,
    Weights,
)
from runtime.actor import Context
from runtime.failpoints import reach

T = TypeVar("T")

Progress = Callable[[str], None]


class Groups(Protocol):
    """See `gpu.receiving.Groups`."""

    def join(self, group: Group, seconds: float) -> None:
        """Meet the others."""

    def leave(self, name: str) -> bool:
        """Forget a group; whether there was one."""

    def receive(
        self, name: str, shapes: Sequence[Shape], path: str, seconds: float, progress: Progress
    ) -> None:
        """Take tensors."""


class Versions(Protocol):
    """See `gpu.versions.Versions`."""

    @property
    def serial(self) -> int:
        """Of what serves."""

    @property
    def groups(self) -> Groups:
        """Of trainers."""

    @property
    def dtype(self) -> str:
        """What is computed in."""

    def examine(self, weights: Weights) -> Found:
        """What a change would bring."""

    def stage(self, weights: Weights, progress: Progress) -> Found:
        """Make a change ready."""

    def discard(self) -> None:
        """Forget it."""

    def checksums(self, *, staged: bool = False) -> Iterator[tuple[str, str]]:
        """Of each tensor."""

    def checksum(self, *, staged: bool = False) -> str:
        """Of all."""

    def peek(self, name: str, count: int) -> tuple[str, tuple[int, ...], list[float]]:
        """A tensor."""


class Executor(Protocol):
    """What has weights."""

    @property
    def versions(self) -> Versions:
        """Its weights."""

    def commit(self, serial: int) -> bool:
        """What has been made ready serves from now on; whether weights of this serial do."""


class Staging:
    """Obeys orders for one executor."""

    def __init__(self, context: Context[Any], executor: Executor) -> None:
        self._context = context
        self._executor = executor

    async def obey(self, order: Order) -> Answer:
        """Carry out an order of the supervisor's. Raises VerbError, and then nothing has changed."""
        if not isinstance(order, weights.Order):
            raise VerbError("failed", "this is no order for an executor.")
        try:
            return await self._carry_out(order)
        except StartError as error:
            code = "usage" if isinstance(order, Examine | Stage) else "failed"
            raise VerbError(code, str(error)) from error

    async def _carry_out(self, order: weights.Order) -> Answer:
        versions, progress = self._executor.versions, self._context.progress
        match order:
            case Examine(new):
                found = await _beside(lambda: versions.examine(new))
                return Staged(found, "", versions.dtype)
            case Stage(new):
                reach("weights.stage")
                found = await _beside(lambda: versions.stage(new, progress))
                reach("weights.staged")
                return Staged(found, await _beside(lambda: versions.checksum(staged=True)), versions.dtype)
            case Commit(serial):
                reach("weights.commit")
                self._commit(serial)
                reach("weights.committed")
            case Discard():
                versions.discard()
            case Join(group, seconds):
                await _beside(lambda: versions.groups.join(group, seconds))
            case Leave(name):
                if not await _beside(lambda: versions.groups.leave(name)):
                    raise VerbError("not_found", f"this executor is in no group {name!r}.")
            case Receive(name, tensors, path, seconds):
                await _beside(lambda: versions.groups.receive(name, tensors, path, seconds, progress))
            case Peek(name, count):
                return self._peek(name, count)
            case Survey():
                return await _beside(self._survey)
            case _:
                assert_never(order)
        return Done()

    def _commit(self, serial: int) -> None:
        """Where nothing of this serial is ready, this process must not serve on: its successor has it."""
        with self._context.busy():
            if not self._executor.commit(serial):
                raise RuntimeError(f"the weights of serial {serial} were decided on and are not here")

    def _peek(self, name: str, count: int) -> Peeked:
        try:
            with self._context.busy():
                dtype, shape, numbers = self._executor.versions.peek(name, count)
        except KeyError as error:
            raise VerbError("not_found", f"the model has no tensor {name!r}.") from error
        return Peeked(dtype, shape, tuple(numbers))

    def _survey(self) -> Surveyed:
        versions = self._executor.versions
        return Surveyed(versions.serial, versions.checksum(), dict(versions.checksums()))


async def _beside(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
