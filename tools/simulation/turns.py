"""What a turn of the core costs in steady decoding: microseconds at N running requests, nothing else on."""

from __future__ import annotations

import gc
import time

import numpy as np

from actors.scheduler.commands import Launch
from actors.scheduler.core import Core
from protocols.messages import Submit
from protocols.plan import ExecutorReady, Plan, StepDone
from protocols.sampling import SamplingParams

PROMPT = 64
WARM_UP = 20


def _answer(plan: Plan) -> StepDone:
    """Token 7 for every row, without a model."""
    samples = [chunk.slot for chunk in plan.chunks if chunk.sample]
    slots = np.array(samples, "<i4").tobytes() + plan.decodes
    return StepDone(plan.epoch, plan.step, slots, np.full(len(slots) // 4, 7, "<i4").tobytes(), 0)


def _crowd(running: int, depth: int, steps: int) -> tuple[Core, list[Plan]]:
    """A core with `running` requests that decode for `steps` steps at least, and its plans in the air."""
    output = steps + depth + WARM_UP + running
    page_size = 16
    core = Core(depth=depth, chunk_size=running + 4096)
    pages = running * (-(-(PROMPT + output) // page_size) + 1)
    rng = np.random.default_rng(0)
    sampling = SamplingParams(seed=1, max_tokens=output, stop_token_ids=(1, 2))
    prompts = [rng.integers(0, 30000, PROMPT, np.int32).tobytes() for _ in range(running)]
    mail = [Submit(rid, rid % 2, 0, prompt, sampling) for rid, prompt in enumerate(prompts)]
    commands = core.turn([ExecutorReady(1, pages, page_size, running, 30000), *mail])
    air = [command.plan for command in commands if isinstance(command, Launch)]
    batcher = core.batcher
    assert batcher is not None
    while int(batcher.running.decoding.sum()) < running:
        air += [c.plan for c in core.turn([_answer(air.pop(0))]) if isinstance(c, Launch)]
    return core, air


def turn_costs(running: int, *, depth: int = 2, steps: int = 200) -> list[float]:
    """Microseconds of each of `steps` turns with `running` decoding requests, each turn taking one StepDone
    in and sending one plan out."""
    core, air = _crowd(running, depth, steps)
    costs = []
    gc.collect()
    gc.freeze()
    for step in range(steps + WARM_UP):
        done = _answer(air.pop(0))
        start = time.thread_time_ns()
        commands = core.turn([done])
        elapsed = time.thread_time_ns() - start
        air += [command.plan for command in commands if isinstance(command, Launch)]
        if step >= WARM_UP:
            costs.append(elapsed / 1000)
    gc.unfreeze()
    return costs
