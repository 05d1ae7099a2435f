"""A decode step's budget: where each microsecond goes, from the scheduler's turn to the tokens' way back."""

from __future__ import annotations

import itertools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpu.executor import Executor
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen, StepDone
from protocols.sampling import SamplingParams
from protocols.wire import Decoder, encode
from tools.simulation.turns import turn_costs


class Decodes:
    """`batch` sequences in an executor, which do nothing but decode."""

    def __init__(self, executor: Executor, batch: int, steps: int, prompt: int) -> None:
        """prompt: tokens of each context at the beginning; steps: decodes that are to come."""
        self.executor, self.epoch, self.step = executor, 1_000_000 + batch, 0
        self._slots = np.arange(batch, dtype="<i4").tobytes()
        pages = -(-(prompt + steps + 2) // executor.page_size)
        sampling = SamplingParams(temperature=0.0, seed=0)
        for slot in range(batch):
            numbers = np.arange(slot * pages, (slot + 1) * pages, dtype="<i4").tobytes()
            opens = (SlotOpen(slot, slot, sampling, 0, prompt, 0),)
            ids = np.full(prompt, 7, "<i4").tobytes()
            self._run(
                Plan(
                    self.epoch,
                    self._next(),
                    (),
                    opens,
                    (PageGrant(slot, 0, numbers),),
                    (Chunk(slot, 0, ids, True),),
                )
            )

    def plan(self) -> Plan:
        """The next decode."""
        return Plan(self.epoch, self._next(), decodes=self._slots)

    def _next(self) -> int:
        self.step += 1
        return self.step

    def _run(self, plan: Plan) -> StepDone:
        return self.executor.finish(self.executor.launch(plan))


def budget(executor: Executor, batch: int, steps: int, prompt: int) -> dict[str, float]:
    """Medians in microseconds. device: from the first of a step's work to its last, the host not waited for
    (depth 2); step: from landing to landing; bubble: of it, what the device had nothing to do."""
    decodes = Decodes(executor, batch, 4 * steps + 8, prompt)
    single = [alone(decodes) for _ in range(steps)]
    parts = ("launch", "wait", "finish")
    found = {name: statistics.median(each[at] for each in single) for at, name in enumerate(parts)}
    step, device = _overlapped(decodes, steps)
    return found | {"device": device, "step": step, "bubble": step - device}


def elsewhere(executor: Executor, batch: int, steps: int, prompt: int, *, turns: int) -> dict[str, float]:
    """The same of what other processes do for a step, and of the way between."""
    # What is not installed costs this piece alone: pyzmq is there for development.
    from tools.bench.ring import microseconds
    from tools.bench.transports import measure, message_of

    decodes = Decodes(executor, batch, 8, prompt)
    plan, done = decodes.plan(), decodes._run(decodes.plan())
    record, answer = encode(plan), encode(done)
    read, told = Decoder[Plan](Plan), Decoder[StepDone](StepDone)
    hop = measure("ring", "echo", message_of(max(1024, len(record))), 50 if turns < 50 else 2000)
    return {
        "scheduler turn": statistics.median(turn_costs(batch, steps=turns)),
        "ring hop": microseconds(hop, 0.5) / 2,
        "plan encode": _median(lambda: encode(plan), steps),
        "plan decode": _median(lambda: read(record), steps),
        "result encode": _median(lambda: encode(done), steps),
        "result decode": _median(lambda: told(answer), steps),
    }


def trace(
    executor: Executor, batch: int, steps: int, prompt: int, path: pathlib.Path | None
) -> dict[str, float]:
    """Microseconds of a decode step by kernel, the longest first; all of it as a trace for Perfetto."""
    decodes = Decodes(executor, batch, steps + 8, prompt)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    on_device = executor.asynchronous
    if on_device:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(steps):
            decodes._run(decodes.plan())
    if path is not None:
        profile.export_chrome_trace(str(path))
    rows = [
        (float(each.self_device_time_total if on_device else each.self_cpu_time_total) / steps, each.key)
        for each in profile.key_averages()
    ]
    return {key: us for us, key in sorted(rows, reverse=True)[:25] if us > 0}


def _median(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1e6)
    return statistics.median(taken)


def alone(decodes: Decodes) -> tuple[float, float, float]:
    """Microseconds to launch, to wait for the device, and to finish after that."""
    executor, plan = decodes.executor, decodes.plan()
    started = time.perf_counter()
    flight = executor.launch(plan)
    launched = time.perf_counter()
    if executor.asynchronous:
        torch.cuda.synchronize()
    waited = time.perf_counter()
    executor.finish(flight)
    ended = time.perf_counter()
    return (launched - started) * 1e6, (waited - launched) * 1e6, (ended - waited) * 1e6


def _event() -> Any:
    make: Any = torch.cuda.Event
    return make(enable_timing=True)


def _overlapped(decodes: Decodes, steps: int) -> tuple[float, float]:
    """Microseconds from landing to landing with two plans in flight, and of the device's work for one."""
    executor = decodes.executor
    marks: list[tuple[Any, Any]] = []
    flights: list[Any] = []
    landed: list[float] = []
    for _ in range(2 * steps):
        if executor.asynchronous:
            # The first waits on the device behind the step before, so it tells when this one could begin.
            pair = _event(), _event()
            pair[0].record()
            flights.append(executor.launch(decodes.plan()))
            pair[1].record()
            marks.append(pair)
        else:
            started = time.perf_counter()
            flights.append(executor.launch(decodes.plan()))
            marks.append((started, time.perf_counter()))
        if len(flights) == 2:
            executor.finish(flights.pop(0))
            landed.append(time.perf_counter())
    executor.finish(flights.pop())
    gaps = [(late - early) * 1e6 for early, late in itertools.pairwise(landed)]
    if executor.asynchronous:
        device = [first.elapsed_time(last) * 1e3 for first, last in marks]
    else:
        device = [(last - first) * 1e6 for first, last in marks]
    return statistics.median(gaps), statistics.median(device)
