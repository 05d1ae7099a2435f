"""The executor actor: plans in, results out; all computing is the executor's (`gpu`).

On a device that works by itself (`asynchronous`) plans are launched as they arrive, while a thread waits
for the oldest one to land, so that the device never waits for mail. Elsewhere `launch` is the work, and
each result leaves before the next plan begins.
"""

from __future__ import annotations

import functools
import importlib
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import trio

from actors import adapting
from actors.conduct import Conduct, Occupied
from actors.profiling import Profiling, Recorded
from actors.staging import Staging, Versions
from protocols.board import Column
from protocols.config import Config, ExecutorKind
from protocols.messages import ExecutorMail
from protocols.orders import (
    Answer,
    Done,
    ExpertRows,
    Order,
    ReadAdapter,
    RecordExperts,
    SetAdapters,
    TakeExperts,
)
from protocols.plan import ExecutorReady, Plan, StepDone
from protocols.spans import SpanName
from protocols.standing import Standing
from runtime.actor import Context
from runtime.failpoints import reach

accepts = ExecutorMail


class Executor(Occupied, Recorded, Protocol):
    """What runs plans: `gpu.executor.Executor` or `gpu.hash_executor.HashExecutor`."""

    pages: int
    page_size: int
    slots: int
    vocab_size: int
    asynchronous: bool

    @property
    def versions(self) -> Versions:
        """Its weights."""

    def commit(self, serial: int) -> bool:
        """What has been made ready serves from now on; whether weights of this serial do."""

    @property
    def adapters(self) -> adapting.Table:
        """Its LoRA adapters."""

    def record_experts(self, on: bool) -> None:
        """Count the rows of each expert of a mixture, or no more."""

    def take_experts(self) -> dict[int, tuple[int, ...]]:
        """What was counted."""

    def finish(self, flight: Any) -> StepDone:
        """Wait for the oldest flight."""


class Gate:
    """Keeps out plans that were not made for what this executor holds.

    Mail outlives actors: an executor that has just started may find plans for slots of the one before it.
    A plan of an older epoch, or of an epoch that has named a slot which was never opened here, does not pass.
    """

    def __init__(self) -> None:
        self._epoch = -1
        self._open: set[int] = set()
        self._strange = False

    def admits(self, plan: Plan) -> bool:
        """Whether `plan` may run; plans are shown in the order in which they arrive."""
        if plan.epoch < self._epoch:
            return False
        if plan.epoch > self._epoch:
            self._epoch, self._open, self._strange = plan.epoch, set(), False
        self._open.difference_update(plan.closes)
        self._open.update(opening.slot for opening in plan.opens)
        named = {grant.slot for grant in plan.grants}
        named.update(chunk.slot for chunk in plan.chunks)
        named.update(np.frombuffer(plan.decodes, "<i4").tolist())
        self._strange = self._strange or not named <= self._open
        return not self._strange


async def run(context: Context[ExecutorMail]) -> None:
    """Load, announce, and serve until asked to stop."""
    with context.busy():
        executor = _load(context.config, context.progress, context.index, context.standing)
        first = context.incarnation <= 1
        adapting.begin(executor.adapters, context.standing.adapters, context.log, first=first)
        executor.record_experts(bool(context.standing.recording))
    await _announce(context, executor)
    await serve(context, executor)


async def serve(context: Context[ExecutorMail], executor: Executor) -> None:
    """Run the plans that come by mail until asked to stop."""
    otherwise = functools.partial(_obey, context, executor, Staging(context, executor))
    conduct = Conduct(context, executor, otherwise)
    profiling = Profiling(context, executor, conduct.obey)
    work = _overlapped if executor.asynchronous else _in_turn
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, context, executor, conduct, profiling)
        nursery.start_soon(context.obey, profiling.obey)
        await context.stopping.wait()
        nursery.cancel_scope.cancel()


async def _obey(context: Context[ExecutorMail], executor: Executor, staging: Staging, order: Order) -> Answer:
    """Carry out an order of the supervisor's."""
    match order:
        case ReadAdapter() | SetAdapters():
            return await adapting.obey(executor.adapters, order, context.log)
        case RecordExperts(on):
            executor.record_experts(on)
            return Done()
        case TakeExperts():
            return ExpertRows(executor.take_experts())
        case _:
            return await staging.obey(order)


def preload(config: Config) -> None:
    """Import what `_load` will need: most of an executor's start is torch."""
    match config.executor:
        case ExecutorKind.HASH:
            importlib.import_module("gpu.hash_executor")
        case ExecutorKind.MODEL:
            importlib.import_module("gpu.loading")


def _load(
    config: Config, progress: Callable[[str], None], replica: int = 0, standing: Standing | None = None
) -> Executor:
    """The executor for `config` with the weights that stand. torch is imported only for a model."""
    standing = standing or Standing()
    match config.executor:
        case ExecutorKind.HASH:
            from gpu.hash_executor import HashExecutor

            return HashExecutor.load(config, progress, standing.weights)
        case ExecutorKind.MODEL:
            from gpu.loading import load_executor

            adapted = bool(standing.adapters)
            return load_executor(config, progress, replica, standing.weights, adapted=adapted)


def _scheduler(context: Context[ExecutorMail]) -> str:
    return f"scheduler.{context.index}"


async def _announce(context: Context[ExecutorMail], executor: Executor) -> None:
    """Sizes go to the scheduler that runs by mail, and to the board for one that starts later."""
    context.vitals[Column.PAGES_TOTAL] = executor.pages
    context.vitals[Column.PAGE_SIZE] = executor.page_size
    context.vitals[Column.SLOTS] = executor.slots
    ready = ExecutorReady(
        incarnation=context.incarnation,
        pages=executor.pages,
        page_size=executor.page_size,
        slots=executor.slots,
        vocab_size=executor.vocab_size,
        excused=context.vitals[Column.EXCUSED],
    )
    await context.outbox.send(_scheduler(context), ready)
    context.ready()


async def _in_turn(
    context: Context[ExecutorMail], executor: Executor, conduct: Conduct, profiling: Profiling
) -> None:
    """One plan after another."""
    gate = Gate()
    while True:
        for mail in await context.inbox.receive():
            if gate.admits(mail.message):
                await conduct.pause()
                start = time.monotonic_ns()
                with context.busy():
                    flight = profiling.launch(mail.message)
                    reach("executor.launched")
                    done = executor.finish(flight)
                _note(context, mail.message, start)
                await _report(context, done)


async def _overlapped(
    context: Context[ExecutorMail], executor: Executor, conduct: Conduct, profiling: Profiling
) -> None:
    """Launch each plan when it comes, and report each when it lands."""
    launched, landing = trio.open_memory_channel[tuple[Plan, int, Any]](math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_land, context, executor, landing)
        gate = Gate()
        while True:
            for mail in await context.inbox.receive():
                if gate.admits(mail.message):
                    await conduct.pause()
                    with context.busy():
                        start = time.monotonic_ns()
                        launched.send_nowait((mail.message, start, profiling.launch(mail.message)))
                        reach("executor.launched")


async def _land(
    context: Context[ExecutorMail],
    executor: Executor,
    landing: trio.MemoryReceiveChannel[tuple[Plan, int, Any]],
) -> None:
    async for plan, start, flight in landing:
        with context.busy():
            done = await trio.to_thread.run_sync(executor.finish, flight, abandon_on_cancel=True)
        _note(context, plan, start)
        await _report(context, done)


def _note(context: Context[ExecutorMail], plan: Plan, start: int) -> None:
    """When a step ran, from its launch at `start` on, where anybody wants to know."""
    if plan.traced or context.box.recording:
        chunks = sum(len(chunk.tokens) for chunk in plan.chunks) // 4
        rows = len(plan.chunks) + len(plan.decodes) // 4
        now = time.monotonic_ns()
        context.box.span(SpanName.STEP, 0, start, now - start, rows, plan.epoch, plan.step, chunks)


async def _report(context: Context[ExecutorMail], done: StepDone) -> None:
    reach("executor.finished")
    context.vitals.add(Column.STEPS_TOTAL)
    context.vitals.add(Column.STEP_US_TOTAL, done.elapsed_us)
    context.worked()
    await context.outbox.send(_scheduler(context), done)
