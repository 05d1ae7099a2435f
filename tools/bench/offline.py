"""The bare executor: plans made by hand, no actors, no rings, no scheduler. The limit for serving.

All requests are prefilled in chunks, then decoded as one batch: what is left of this rate after
rings, scheduling, detokenisation and sockets is the figure `served / bare`.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from protocols.config import Config, ExecutorKind
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen
from protocols.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class Case:
    """`requests` of `prompt` random tokens each, answered with `output` tokens, greedy."""

    requests: int
    prompt: int
    output: int


@dataclasses.dataclass(frozen=True)
class Figure:
    """Seconds of prefill and of decode, and what they amount to."""

    prefill_seconds: float
    decode_seconds: float
    prompt_tokens: int
    output_tokens: int

    @property
    def decode_rate(self) -> float:
        """Output tokens a second while decoding."""
        return self.output_tokens / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second while prefilling."""
        return self.prompt_tokens / self.prefill_seconds


def _silent(*_: object) -> None:
    """Progress that nobody watches."""


def load_executor(config: Config) -> Any:
    """The executor that `config` names, in this process."""
    if config.executor is ExecutorKind.HASH:
        from gpu.hash_executor import HashExecutor

        return HashExecutor.load(config, _silent)
    from gpu.loading import load_executor

    return load_executor(config, _silent)


def run(executor: Any, config: Config, case: Case, epoch: int, adapters: Sequence[int] = ()) -> Figure:
    """One timed run of `case`; each run needs its own `epoch`, which clears the executor. adapters: ids, one
    for each request."""
    rng = np.random.default_rng(epoch)
    prompts = rng.integers(0, config.model.vocab_size, (case.requests, case.prompt), dtype=np.int32)
    steps = _Steps(executor, epoch)
    started = time.perf_counter()
    for plan in _prefill(executor, config, case, prompts, adapters):
        steps.run(**plan)
    between = time.perf_counter()
    slots = np.arange(case.requests, dtype="<i4").tobytes()
    for _ in range(case.output - 1):
        steps.run(decodes=slots)
    ended = time.perf_counter()
    tokens = case.requests * case.output
    return Figure(between - started, ended - between, prompts.size, tokens)


class _Steps:
    def __init__(self, executor: Any, epoch: int) -> None:
        self._executor, self._epoch, self._step = executor, epoch, 0

    def run(self, **fields: Any) -> None:
        self._step += 1
        done = self._executor.finish(self._executor.launch(Plan(self._epoch, self._step, **fields)))
        assert not done.failed


def _prefill(
    executor: Any, config: Config, case: Case, prompts: np.ndarray, adapters: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Plans as full as a scheduler's: up to `chunk_size` tokens, of one prompt after the other."""
    pages = -(-(case.prompt + case.output) // executor.page_size)
    assert pages * case.requests <= executor.pages and case.requests <= executor.slots
    plan: defaultdict[str, tuple[Any, ...]] = defaultdict(tuple)
    left = config.chunk_size
    for slot in range(case.requests):
        granted = np.arange(slot * pages, (slot + 1) * pages, dtype="<i4").tobytes()
        sampling = SamplingParams(temperature=0.0, seed=slot, max_tokens=case.output)
        adapter = adapters[slot] if adapters else 0
        plan["opens"] += (SlotOpen(slot, slot, sampling, 0, case.prompt, 0, b"", adapter),)
        plan["grants"] += (PageGrant(slot, 0, granted),)
        start = 0
        while start < case.prompt:
            end = min(start + left, case.prompt)
            piece = prompts[slot, start:end].astype("<i4").tobytes()
            plan["chunks"] += (Chunk(slot, start, piece, end == case.prompt),)
            left, start = left - (end - start), end
            if not left:
                yield dict(plan)
                plan.clear()
                left = config.chunk_size
    if plan:
        yield dict(plan)
