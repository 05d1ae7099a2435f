"""Drives an executor as a scheduler would, with the least that it takes: pages, slots, epochs and plans."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from protocols.plan import Chunk, PageGrant, Plan, SlotOpen, StepDone
from protocols.sampling import SamplingParams

_epochs = itertools.count(1)

GREEDY = SamplingParams(temperature=0.0, seed=1, max_tokens=64)


@dataclasses.dataclass
class Sequence:
    """A sequence under way: `done` tokens have their KV, `pages` are its block table."""

    slot: int
    prompt: list[int]
    sampling: SamplingParams = GREEDY
    choice: int = 0
    output: list[int] = dataclasses.field(default_factory=list)
    pages: list[int] = dataclasses.field(default_factory=list)
    granted: int = 0

    @property
    def tokens(self) -> list[int]:
        """Everything known."""
        return self.prompt + self.output


def ints(values: list[int]) -> bytes:
    """Little-endian int32."""
    return np.array(values, "<i4").tobytes()


class Driver:
    """One epoch on `executor`: every executor forgets what came before it. speculates: as it was told."""

    def __init__(self, executor: Any, *, speculates: bool = False) -> None:
        self.executor, self.speculates = executor, speculates
        self.epoch = next(_epochs)
        self.free = list(range(executor.pages))
        self._step = 0
        self._opens: list[SlotOpen] = []
        self._closes: list[int] = []

    def open(self, sequence: Sequence, shared: list[int] | None = None) -> Sequence:
        """Take the sequence's slot; `shared` are pages at its start that hold its KV already."""
        sequence.pages, sequence.granted = list(shared or []), 0
        cached = len(sequence.pages) * self.executor.page_size
        history = ints(sequence.tokens) if sequence.sampling.remembers or self.speculates else b""
        self._opens.append(
            SlotOpen(
                sequence.slot,
                sequence.slot + 1,
                sequence.sampling,
                sequence.choice,
                len(sequence.prompt),
                cached,
                history,
            )
        )
        return sequence

    def close(self, sequence: Sequence, *, keep_pages: bool = False) -> None:
        """Leave the slot, with the next plan; the pages are free at once unless kept."""
        self._closes.append(sequence.slot)
        if not keep_pages:
            self.free[:0] = sequence.pages

    def plan(
        self,
        chunks: list[tuple[Sequence, int, int]],
        decodes: list[Sequence],
        drafts: int = 0,
        rounds: int = 1,
    ) -> Plan:
        """chunks: (sequence, start, end) of its known tokens; it samples where end is the end. drafts:
        guesses that each decode may run. rounds: how often the decodes run."""
        grants = [self._grant(sequence, end) for sequence, _, end in chunks]
        # A decode may be planned before the tokens of the last one are known here.
        ahead = 2 * (rounds + drafts)
        grants += [self._grant(sequence, len(sequence.tokens) + ahead) for sequence in decodes]
        self._step += 1
        plan = Plan(
            epoch=self.epoch,
            step=self._step,
            closes=tuple(self._closes),
            opens=tuple(self._opens),
            grants=tuple(grant for grant in grants if grant is not None),
            chunks=tuple(
                Chunk(s.slot, start, ints(s.tokens[start:end]), end == len(s.tokens))
                for s, start, end in chunks
            ),
            decodes=ints([sequence.slot for sequence in decodes]),
            drafts=ints([drafts] * len(decodes)) if drafts else b"",
            rounds=rounds,
        )
        self._opens, self._closes = [], []
        return plan

    def _grant(self, sequence: Sequence, tokens: int) -> PageGrant | None:
        needed = -(-tokens // self.executor.page_size)
        while len(sequence.pages) < needed:
            sequence.pages.append(self.free.pop(0))
        first, sequence.granted = sequence.granted, len(sequence.pages)
        if first == sequence.granted:
            return None
        return PageGrant(sequence.slot, first, ints(sequence.pages[first:]))

    def step(
        self,
        chunks: list[tuple[Sequence, int, int]] | None = None,
        decodes: list[Sequence] | None = None,
        drafts: int = 0,
    ) -> StepDone:
        """Plan, run, and append the tokens to their sequences."""
        chunks, decodes = chunks or [], decodes or []
        plan = self.plan(chunks, decodes, drafts)
        return self.take(plan, self.executor.launch(plan), [s for s, _, _ in chunks] + decodes)

    def take(self, plan: Plan, flight: Any, sequences: list[Sequence]) -> StepDone:
        """Finish a flight."""
        done: StepDone = self.executor.finish(flight)
        assert (done.epoch, done.step) == (plan.epoch, plan.step)
        by_slot = {sequence.slot: sequence for sequence in sequences}
        for slot, token in zip(
            np.frombuffer(done.slots, "<i4"), np.frombuffer(done.tokens, "<i4"), strict=True
        ):
            by_slot[int(slot)].output.append(int(token))
        return done

    def prefill(self, sequence: Sequence, *splits: int) -> None:
        """Everything not cached, in chunks that end at `splits` and at the end."""
        start = len(sequence.pages) * self.executor.page_size
        for end in (*splits, len(sequence.tokens)):
            self.step([(sequence, start, end)])
            start = end

    def generate(self, sequence: Sequence, count: int, *splits: int) -> list[int]:
        """Open, prefill and decode until there are `count` output tokens."""
        self.prefill(self.open(sequence), *splits)
        while len(sequence.output) < count:
            self.step(decodes=[sequence])
        return sequence.output
