"""The executor's rows of sequence state, and the flattened batch that a plan makes of them.

Everything here is exact on the host without waiting for the device: how long a sequence is and
where its pages lie depends on the plans alone, and on guesses once they are verified. Only the token values
stay on the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpu.attention import Batch
from gpu.speculation import Run
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One forward step, laid out. slots: int64 [n], of each sequence of the batch.

    known_tokens: int64 ids of the rows of chunks, then runs, which come first; then one row for each of
    `decodes` (int64 slots). sampled: int32 slots, chunks that sample, then each row of the runs, then
    decodes; rows: int64, their rows in the step; next_positions: int64, position of the token that each
    of them samples. first_run: where the runs begin in these three.
    """

    batch: Batch
    slots: Ints
    known_tokens: Ints
    runs: Sequence[Run]
    first_run: int
    decodes: Ints
    sampled: npt.NDArray[np.int32]
    rows: Ints
    next_positions: Ints

    def confirmed(self, tokens: Ints) -> list[int]:
        """How many rows of each run count, given the tokens [n] that were sampled."""
        counts, start, sampled = [], self.first_run, tokens.tolist() if self.runs else []
        for run in self.runs:
            end = start + len(run.tokens)
            counts.append(run.confirmed(sampled[start:end]))
            start = end
        return counts

    def kept(self, confirmed: Sequence[int]) -> npt.NDArray[np.intp]:
        """The rows of `sampled` that count, with so many of each run: int [<= n]."""
        keep = np.ones(len(self.sampled), np.bool_)
        start = self.first_run
        for run, count in zip(self.runs, confirmed, strict=True):
            keep[start + count : start + len(run.tokens)] = False
            start += len(run.tokens)
        return np.flatnonzero(keep)


class SlotKeeper(Protocol):
    """Keeps something of every open slot."""

    def reset(self) -> None:
        """Forget every slot."""

    def close(self, slot: int) -> None:
        """The slot's sequence is gone."""

    def open(self, opening: SlotOpen) -> None:
        """A sequence takes the slot."""


class BlockTables:
    """Length and block table of each slot. lengths, granted: int64 [slots], positions with KV, and with a
    page."""

    def __init__(self, slots: int, max_pages: int, page_size: int) -> None:
        """max_pages: entries of a block table, its width."""
        self.page_size, self.width = page_size, max_pages
        self.lengths = np.zeros(slots, np.int64)
        self.granted = np.zeros(slots, np.int64)
        self._open = np.zeros(slots, np.bool_)
        self._table = np.full((slots, max_pages), -1, np.int32)

    def reset(self) -> None:
        """See `SlotKeeper`."""
        self._open[:] = False

    def close(self, slot: int) -> None:
        """See `SlotKeeper`."""
        self._open[slot] = False

    def open(self, opening: SlotOpen) -> None:
        """A sequence takes the slot; its first `cached` positions have been computed."""
        self._open[opening.slot] = True
        self.lengths[opening.slot] = opening.cached
        self._table[opening.slot] = -1

    def grant(self, grant: PageGrant) -> None:
        """Append pages to a block table."""
        pages = np.frombuffer(grant.pages, "<i4")
        end = grant.first + len(pages)
        self._table[grant.slot, grant.first : end] = pages
        self.granted[grant.slot] = end * self.page_size

    def advance(self, slots: int | Ints, positions: int) -> None:
        """So many rows of a run turned out to count, or so many rounds were decoded."""
        self.lengths[slots] += positions

    def step(self, plan: Plan, runs: Sequence[Run] = (), decodes: Ints | None = None) -> Step:
        """Lay out the plan's forward and advance the lengths past it, though not past its runs.

        decodes: where a speculator has parted the plan's decodes, the slots that decode without a guess.
        """
        chunks = plan.chunks
        if decodes is None:
            decodes = np.frombuffer(plan.decodes, "<i4").astype(np.int64)
        if not chunks and not runs:
            return self._decode(decodes, plan.rounds)
        first = [chunk.slot for chunk in chunks] + [run.slot for run in runs]
        slots = np.array(first + decodes.tolist(), np.int64)
        tokens = [np.frombuffer(chunk.tokens, "<i4") for chunk in chunks]
        tokens += [np.array(run.tokens, "<i4") for run in runs]
        query_lens = np.ones(len(slots), np.int64)
        query_lens[: len(tokens)] = [len(ids) for ids in tokens]
        starts = self.lengths[slots]
        assert self._open[slots].all(), "a plan runs a slot that is not open"
        assert all(map(_starts_at, chunks, starts)), "a chunk does not continue its slot"
        contexts = starts + query_lens
        self.lengths[slots] = contexts
        self.lengths[slots[len(chunks) : len(first)]] = starts[len(chunks) : len(first)]
        batch = self._batch(slots, query_lens, starts, contexts, len(decodes))
        samples = np.ones(len(slots), np.int64)
        samples[: len(tokens)] = [chunk.sample for chunk in chunks] + [len(run.tokens) for run in runs]
        rows = _last_rows(query_lens, samples)
        return Step(
            batch=batch,
            slots=slots,
            known_tokens=np.concatenate(tokens).astype(np.int64) if tokens else np.zeros(0, np.int64),
            runs=runs,
            first_run=int(samples[: len(chunks)].sum()),
            decodes=decodes,
            sampled=np.repeat(slots, samples).astype(np.int32),
            rows=rows,
            next_positions=batch.positions[rows] + 1,
        )

    def _decode(self, slots: Ints, rounds: int) -> Step:
        """The first of `rounds` steps of nothing but single rows, which most are; its block tables reach as
        far as the last one."""
        assert self._open[slots].all(), "a plan runs a slot that is not open"
        positions = self.lengths[slots]
        last = positions + rounds - 1
        assert self._table[slots, last // self.page_size].min() >= 0, (
            "a plan writes where no page was granted"
        )
        contexts = positions + 1
        self.lengths[slots] = contexts
        pages = self._table[slots, positions // self.page_size]
        rows = np.arange(len(slots))
        return Step(
            batch=self._laid(np.ones_like(slots), contexts, positions, pages, slots, len(slots), last),
            slots=slots,
            known_tokens=np.zeros(0, np.int64),
            runs=(),
            first_run=0,
            decodes=slots,
            sampled=slots.astype(np.int32),
            rows=rows,
            next_positions=contexts,
        )

    def _batch(self, slots: Ints, query_lens: Ints, starts: Ints, contexts: Ints, decodes: int) -> Batch:
        ends = np.cumsum(query_lens)
        positions = np.arange(ends[-1]) + np.repeat(starts - (ends - query_lens), query_lens)
        pages = self._table[np.repeat(slots, query_lens), positions // self.page_size]
        return self._laid(query_lens, contexts, positions, pages, slots, decodes, positions)

    def _laid(
        self,
        query_lens: Ints,
        contexts: Ints,
        positions: Ints,
        pages: npt.NDArray[np.int32],
        slots: Ints,
        decodes: int,
        last: Ints,
    ) -> Batch:
        """pages: of each row. last: positions that the block tables reach."""
        assert pages.min() >= 0, "a plan writes where no page was granted"
        used = int(last.max()) // self.page_size + 1
        return Batch(
            query_lens=query_lens,
            contexts=contexts,
            block_tables=self._table[slots, :used],
            positions=positions,
            places=pages.astype(np.int64) * self.page_size + positions % self.page_size,
            decodes=decodes,
        )


def _last_rows(query_lens: Ints, counts: Ints) -> Ints:
    """The last counts[i] rows of each sequence i that has query_lens[i] of them."""
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts), counts)
    return np.repeat(np.cumsum(query_lens), counts) + within


def _starts_at(chunk: Chunk, length: np.int64) -> bool:
    return chunk.start == length
