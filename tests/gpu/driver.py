"""A minimal scheduler: just enough to make the plans that the executor's tests need.

It admits while slots are free, prefills in chunks under a token budget mixed with decodes, and keeps up to
`depth` plans in flight. It can serve prompt prefixes from pages that an earlier sequence filled, and throw
a running sequence out and bring it back.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from gpu.executor import Executor
from gpu.flight import Flight
from protocols.plan import Chunk, Logprobs, PageGrant, Plan, SlotOpen
from protocols.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0, seed=0, logprobs=3)


def ints(values: Sequence[int]) -> bytes:
    """Little-endian int32 bytes."""
    return np.asarray(values, "<i4").tobytes()


@dataclasses.dataclass
class Output:
    """What came out for one prompt."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[Logprobs] = dataclasses.field(default_factory=list)
    failure: str = ""


@dataclasses.dataclass(eq=False)
class Running:
    """A sequence. planned: positions in launched plans; ordered: output tokens in launched plans;
    prefill: tokens known when it was opened; granted: pages that the executor knows of."""

    prompt: list[int]
    sampling: SamplingParams
    want: int
    adapter: int = 0
    output: Output = dataclasses.field(default_factory=Output)
    slot: int = -1
    pages: list[int] = dataclasses.field(default_factory=list)
    planned: int = 0
    ordered: int = 0
    prefill: int = 0
    granted: int = 0

    @property
    def known(self) -> list[int]:
        return self.prompt + self.output.tokens

    @property
    def done(self) -> bool:
        return bool(self.output.failure) or len(self.output.tokens) == self.want


class Driver:
    """Runs prompts through an executor. budget: tokens of a step; depth: plans in flight;
    share: serve prefixes from the pages of finished sequences."""

    def __init__(self, executor: Executor, *, budget: int = 64, depth: int = 1, share: bool = False) -> None:
        self.executor, self.budget, self.depth, self.share = executor, budget, depth, share
        self.free = list(range(executor.pages))[::-1]
        self.slots = list(range(executor.slots))[::-1]
        self.cache: dict[tuple[int, ...], int] = {}
        self.plans: list[Plan] = []
        self.waiting: collections.deque[Running] = collections.deque()
        self.running: list[Running] = []
        self.epoch = 1
        self._closing: list[int] = []
        self._flights: collections.deque[tuple[Flight, list[Running]]] = collections.deque()

    def generate(
        self, prompts: Sequence[list[int]], want: int, sampling: SamplingParams = GREEDY
    ) -> list[Output]:
        """`want` tokens after each prompt."""
        sequences = [self.submit(prompt, want, sampling) for prompt in prompts]
        while self.turn():
            pass
        return [sequence.output for sequence in sequences]

    def submit(
        self, prompt: list[int], want: int, sampling: SamplingParams = GREEDY, adapter: int = 0
    ) -> Running:
        """Queue a prompt."""
        self.waiting.append(Running(prompt, sampling, want, adapter))
        return self.waiting[-1]

    def turn(self) -> bool:
        """Launch one plan where there is work, then commit what must come back; False when all is done."""
        opens = []
        while self.waiting and self.slots:
            opens.append(self._open(self.waiting.popleft()))
        if any(sequence.ordered < sequence.want for sequence in self.running):
            self._launch(opens)
            if len(self._flights) < self.depth:
                return True
        if self._flights:
            self._commit(*self._flights.popleft())
        return bool(self.running or self.waiting)

    def retract(self, sequence: Running) -> None:
        """Throw a running sequence out, to the back of the queue."""
        self.drain()
        self.running.remove(sequence)
        self._close(sequence)
        self.waiting.append(sequence)

    def drain(self) -> None:
        """Commit all flights."""
        while self._flights:
            self._commit(*self._flights.popleft())

    def restart(self) -> None:
        """Begin a new epoch with empty pages, as after an executor's or a scheduler's death."""
        self.drain()
        for sequence in self.running:
            self._close(sequence)
        self.waiting.extend(self.running)
        self.running, self._closing, self.cache = [], [], {}
        self.free = list(range(self.executor.pages))[::-1]
        self.epoch += 1

    def _open(self, sequence: Running) -> SlotOpen:
        known, size = sequence.known, self.executor.page_size
        sequence.slot, sequence.pages, sequence.granted = self.slots.pop(), [], 0
        for end in range(size, len(known), size):
            page = self.cache.get(tuple(known[:end]))
            if page is None:
                break
            sequence.pages.append(page)
        cached = sequence.planned = len(sequence.pages) * size
        sequence.ordered, sequence.prefill = len(sequence.output.tokens), len(known)
        self.running.append(sequence)
        history = ints(known) if sequence.sampling.remembers else b""
        shape = sequence.sampling, 0, len(sequence.prompt), cached, history, sequence.adapter
        return SlotOpen(sequence.slot, 0, *shape)

    def _launch(self, opens: list[SlotOpen]) -> None:
        grants: list[PageGrant] = []
        chunks: list[Chunk] = []
        sampling: list[Running] = []
        decodes: list[Running] = []
        left = self.budget
        for sequence in [s for s in self.running if s.ordered < s.want]:
            size = min(left, max(1, sequence.prefill - sequence.planned))
            if size == 0:
                break
            left -= size
            start, end = sequence.planned, sequence.planned + size
            sequence.planned = end
            grants += self._grant(sequence)
            if start >= sequence.prefill:
                decodes.append(sequence)
                continue
            last = end == sequence.prefill
            chunks.append(Chunk(sequence.slot, start, ints(sequence.known[start:end]), last))
            sampling += [sequence] * last
        for sequence in sampling + decodes:
            sequence.ordered += 1
        slots = ints([sequence.slot for sequence in decodes])
        closes, self._closing = tuple(self._closing), []
        plan = Plan(self.epoch, len(self.plans), closes, tuple(opens), tuple(grants), tuple(chunks), slots)
        self.plans.append(plan)
        self._flights.append((self.executor.launch(plan), sampling + decodes))

    def _grant(self, sequence: Running) -> list[PageGrant]:
        """Pages up to what is planned, and those that the executor has not heard of."""
        while len(sequence.pages) * self.executor.page_size < sequence.planned:
            sequence.pages.append(self.free.pop())
        first, sequence.granted = sequence.granted, len(sequence.pages)
        new = sequence.pages[first:]
        return [PageGrant(sequence.slot, first, ints(new))] if new else []

    def _commit(self, flight: Flight, sequences: list[Running]) -> None:
        done = self.executor.finish(flight)
        assert np.frombuffer(done.slots, "<i4").tolist() == [sequence.slot for sequence in sequences]
        logprobs, failed = dict(done.logprobs), dict(done.failed)
        for row, token in enumerate(np.frombuffer(done.tokens, "<i4").tolist()):
            sequence = sequences[row]
            if sequence.done:
                continue
            if sequence.slot in failed:
                assert token == -1
                sequence.output.failure = failed[sequence.slot].message
                sequence.want = sequence.ordered
                continue
            sequence.output.tokens.append(token)
            sequence.output.logprobs += [logprobs[row]] if row in logprobs else []
        for sequence in [s for s in self.running if s.done]:
            self.running.remove(sequence)
            self._close(sequence)

    def _close(self, sequence: Running) -> None:
        """Free the slot and the pages, but for full ones of known tokens where prefixes are shared."""
        size, known = self.executor.page_size, sequence.known
        for index, page in enumerate(sequence.pages):
            end = (index + 1) * size
            computed = self.share and end < len(known)
            if not computed or self.cache.setdefault(tuple(known[:end]), page) != page:
                self.free.append(page)
        self._closing.append(sequence.slot)
        self.slots.append(sequence.slot)
