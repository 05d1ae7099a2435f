"""Requests through a bare executor: continuous batching without actors, rings and radix tree."""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time
from collections.abc import Sequence

import numpy as np

from gpu.executor import Executor
from gpu.flight import Flight
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen
from protocols.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt, and how many tokens are to follow it."""

    prompt: list[int]
    output: int


@dataclasses.dataclass
class _Sequence:
    """planned: positions in launched plans; ordered: tokens that they sample."""

    request: Request
    slot: int
    pages: list[int]
    planned: int = 0
    ordered: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """A step that has landed. seconds: since the one before."""

    seconds: float
    prefilled: int
    decoded: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """tokens: of each request. seconds: from the first launch to the last landing."""

    tokens: list[list[int]]
    seconds: float
    steps: list[StepTime]

    def decode_seconds(self, batch: int) -> float:
        """Median of the steps that do nothing but decode `batch` sequences."""
        steps = [step.seconds for step in self.steps if not step.prefilled and step.decoded == batch]
        return statistics.median(steps[1:] or steps)

    def prefill_seconds(self) -> float:
        """Of all steps that prefill."""
        return sum(step.seconds for step in self.steps if step.prefilled)


class Driver:
    """chunk_size: tokens of a step; depth: plans in flight."""

    def __init__(self, executor: Executor, chunk_size: int, depth: int = 2) -> None:
        self._executor, self._chunk_size, self._depth = executor, chunk_size, depth
        self._epoch = 0

    def run(self, requests: Sequence[Request]) -> Outcome:
        """All requests, greedily; as many at a time as slots and pages allow."""
        self._epoch, self._step = self._epoch + 1, 0
        self._waiting = collections.deque(enumerate(requests))
        self._slots = list(range(self._executor.slots))[::-1]
        self._pages = list(range(self._executor.pages))[::-1]
        self._running: dict[int, _Sequence] = {}
        self._closing: list[int] = []
        self._tokens: list[list[int]] = [[] for _ in requests]
        self._flights: collections.deque[tuple[Flight, list[int], int, int]] = collections.deque()
        self._steps: list[StepTime] = []
        self._landed = started = time.perf_counter()
        while self._launch() or self._flights:
            if len(self._flights) >= self._depth or not self._ready():
                self._land()
        return Outcome(self._tokens, self._landed - started, self._steps)

    def _ready(self) -> bool:
        return any(each.ordered < each.request.output for each in self._running.values())

    def _open(self) -> list[tuple[SlotOpen, PageGrant]]:
        opened = []
        while self._waiting and self._slots:
            number, request = self._waiting[0]
            count = -(-(len(request.prompt) + request.output + 1) // self._executor.page_size)
            if count > len(self._pages):
                break
            self._waiting.popleft()
            slot, pages = self._slots.pop(), [self._pages.pop() for _ in range(count)]
            self._running[number] = _Sequence(request, slot, pages)
            sampling = SamplingParams(temperature=0.0, seed=0, max_tokens=request.output)
            opening = SlotOpen(slot, number, sampling, 0, len(request.prompt), 0)
            opened.append((opening, PageGrant(slot, 0, np.array(pages, "<i4").tobytes())))
        assert self._running or not self._waiting, "a request needs more pages than there are"
        return opened

    def _launch(self) -> bool:
        opened = self._open()
        chunks, decodes, sampling, left = [], [], [], self._chunk_size
        running = [(n, each) for n, each in self._running.items() if each.ordered < each.request.output]
        for number, each in sorted(running, key=lambda item: item[1].planned < len(item[1].request.prompt)):
            prompt, start = each.request.prompt, each.planned
            size = min(left, max(1, len(prompt) - start))
            if size == 0:
                break
            each.planned, left = start + size, left - size
            if start >= len(prompt):
                decodes.append((number, each))
                continue
            last = each.planned == len(prompt)
            ids = np.array(prompt[start : each.planned], "<i4").tobytes()
            chunks.append(Chunk(each.slot, start, ids, last))
            sampling += [(number, each)] * last
        if not chunks and not decodes:
            return False
        for _, each in sampling + decodes:
            each.ordered += 1
        opens, grants = tuple(opening for opening, _ in opened), tuple(grant for _, grant in opened)
        closes, self._closing, self._step = tuple(self._closing), [], self._step + 1
        slots = np.array([each.slot for _, each in decodes], "<i4").tobytes()
        plan = Plan(self._epoch, self._step, closes, opens, grants, tuple(chunks), slots)
        numbers = [number for number, _ in sampling + decodes]
        prefilled = sum(len(chunk.tokens) // 4 for chunk in chunks)
        self._flights.append((self._executor.launch(plan), numbers, prefilled, len(decodes)))
        return True

    def _land(self) -> None:
        flight, numbers, prefilled, decoded = self._flights.popleft()
        done = self._executor.finish(flight)
        now = time.perf_counter()
        self._steps.append(StepTime(now - self._landed, prefilled, decoded))
        self._landed = now
        assert not done.failed, done.failed
        for number, token in zip(numbers, np.frombuffer(done.tokens, "<i4").tolist(), strict=True):
            each = self._running[number]
            self._tokens[number].append(token)
            if len(self._tokens[number]) == each.request.output:
                self._slots.append(each.slot)
                self._pages += each.pages
                self._closing.append(each.slot)
                del self._running[number]


def requests(count: int, prompt: tuple[int, int], output: tuple[int, int], vocab_size: int) -> list[Request]:
    """Random ones, with lengths from .. to, the same at every call."""
    rng = np.random.default_rng(7)
    lengths = [
        (int(rng.integers(*prompt, endpoint=True)), int(rng.integers(*output, endpoint=True)))
        for _ in range(count)
    ]
    return [Request(rng.integers(0, vocab_size, size).tolist(), more) for size, more in lengths]
