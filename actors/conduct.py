"""How an executor works besides what its plans say: slowed down, or with memory given back."""

from __future__ import annotations

from typing import Any, Protocol

import trio

from protocols.errors import StartError, VerbError
from protocols.orders import Adjust, Answer, Done, Held, Order, Release, Restore
from protocols.standing import Memory
from protocols.weights import Leave
from runtime.actor import Context
from runtime.orders import Handler


class Occupied(Protocol):
    """What occupies memory: `gpu.executor.Executor` or `gpu.hash_executor.HashExecutor`."""

    def release(self, tags: tuple[Memory, ...]) -> dict[str, int]:
        """Give memory back: bytes by tag."""

    def restore(self, tags: tuple[Memory, ...]) -> dict[str, int]:
        """Take it again, as it was: bytes by tag. StartError where that cannot be done."""


class Conduct:
    """Of one executor, from its start on as the standing says. otherwise: takes all other orders."""

    def __init__(self, context: Context[Any], executor: Occupied, otherwise: Handler) -> None:
        self._context = context
        self._executor = executor
        self._otherwise = otherwise
        self._delay = context.standing.settings.step_delay
        self._released: set[Memory] = set()
        if context.standing.released:
            self._release(context.standing.released)

    async def pause(self) -> None:
        """Wait as long as each step is to be delayed."""
        if self._delay:
            await trio.sleep(self._delay)

    async def obey(self, order: Order) -> Answer:
        """Carry out an order."""
        match order:
            case Adjust(settings):
                self._delay = settings.step_delay
                return Done()
            case Release(tags):
                with self._context.busy():
                    return Held(self._release(tags))
            case Restore(tags):
                return Held(await self._restore(tags))
            case _:
                if Memory.WEIGHTS in self._released and not isinstance(order, Leave):
                    raise VerbError("conflict", "the weights are released: resume them first.")
                return await self._otherwise(order)

    def _release(self, tags: tuple[Memory, ...]) -> dict[str, int]:
        sizes = self._executor.release(tuple(tag for tag in tags if tag not in self._released))
        self._released.update(tags)
        return sizes

    async def _restore(self, tags: tuple[Memory, ...]) -> dict[str, int]:
        missing = tuple(tag for tag in tags if tag in self._released)
        try:
            sizes = await trio.to_thread.run_sync(self._executor.restore, missing)
        except StartError as error:
            raise VerbError("failed", str(error)) from error
        self._released.difference_update(tags)
        return sizes
