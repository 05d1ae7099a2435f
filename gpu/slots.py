"""The executor's rows of sequence state, and the flattened batch that a plan makes of them.

Everything here is exact on the host without waiting for the device: how long a sequence is and
where its pages lie depends on the plans alone. Only the token values stay on the device.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from gpu.attention import Batch
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One forward step, laid out.

    chunk_tokens: int64 ids of the chunks' rows, which come first; then one row for each of `decodes`
    (int64 slots). sampled: int32 slots, chunks that sample then decodes; rows: int64, their rows in the step;
    next_positions: int64, position of the token that each of them samples.
    """

    batch: Batch
    chunk_tokens: Ints
    decodes: Ints
    sampled: npt.NDArray[np.int32]
    rows: Ints
    next_positions: Ints


class Slots:
    """Length and block table of each slot."""

    def __init__(self, slots: int, max_pages: int, page_size: int) -> None:
        """max_pages: entries of a block table."""
        self.page_size = page_size
        self._length = np.zeros(slots, np.int64)
        self._open = np.zeros(slots, np.bool_)
        self._table = np.full((slots, max_pages), -1, np.int32)

    def reset(self) -> None:
        """Forget every slot."""
        self._open[:] = False

    def close(self, slot: int) -> None:
        """The slot's sequence is gone."""
        self._open[slot] = False

    def open(self, opening: SlotOpen) -> None:
        """A sequence takes the slot; its first `cached` positions have been computed."""
        self._open[opening.slot] = True
        self._length[opening.slot] = opening.cached
        self._table[opening.slot] = -1

    def grant(self, grant: PageGrant) -> None:
        """Append pages to a block table."""
        pages = np.frombuffer(grant.pages, "<i4")
        self._table[grant.slot, grant.first : grant.first + len(pages)] = pages

    def step(self, plan: Plan) -> Step:
        """Lay out the plan's forward and advance the lengths past it."""
        decodes = np.frombuffer(plan.decodes, "<i4").astype(np.int64)
        slots = np.array([chunk.slot for chunk in plan.chunks] + decodes.tolist(), np.int64)
        tokens = [np.frombuffer(chunk.tokens, "<i4") for chunk in plan.chunks]
        query_lens = np.ones(len(slots), np.int64)
        query_lens[: len(tokens)] = [len(ids) for ids in tokens]
        starts = self._length[slots]
        assert self._open[slots].all(), "a plan runs a slot that is not open"
        assert all(map(_starts_at, plan.chunks, starts)), "a chunk does not continue its slot"
        self._length[slots] = contexts = starts + query_lens
        sampling = np.array([chunk.sample for chunk in plan.chunks] + [True] * len(decodes), np.bool_)
        return Step(
            batch=self._batch(slots, query_lens, starts, contexts, len(decodes)),
            chunk_tokens=np.concatenate(tokens).astype(np.int64) if tokens else np.zeros(0, np.int64),
            decodes=decodes,
            sampled=slots[sampling].astype(np.int32),
            rows=(np.cumsum(query_lens) - 1)[sampling],
            next_positions=contexts[sampling],
        )

    def _batch(self, slots: Ints, query_lens: Ints, starts: Ints, contexts: Ints, decodes: int) -> Batch:
        ends = np.cumsum(query_lens)
        positions = np.arange(ends[-1]) + np.repeat(starts - (ends - query_lens), query_lens)
        pages = self._table[np.repeat(slots, query_lens), positions // self.page_size]
        assert pages.min() >= 0, "a plan writes where no page was granted"
        used = -(-int(contexts.max()) // self.page_size)
        return Batch(
            query_lens=query_lens,
            contexts=contexts,
            block_tables=self._table[slots, :used],
            positions=positions,
            places=pages.astype(np.int64) * self.page_size + positions % self.page_size,
            decodes=decodes,
        )


def _starts_at(chunk: Chunk, length: np.int64) -> bool:
    return chunk.start == length
