"""An executor for simulations: hash tokens, a KV pool that remembers contexts, and a cost model.

The "KV" of a position is the CRC-32 of all tokens up to it, read and written through the block
table like real KV. The prompt's CRC, from which the oracle makes its tokens, is therefore read back from the
pages: a wrong page, a page freed too early or a prefix shared wrongly gives wrong tokens.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np

from protocols.oracle import next_token, sequence_key
from protocols.plan import Chunk, Plan, SlotOpen, StepDone


@dataclasses.dataclass(frozen=True)
class Cost:
    """Milliseconds of a step: fixed + token x tokens + kv x tokens attended to by decodes.

    The defaults are of the order of an 8B model in bf16 on one H100-class GPU.
    """

    fixed: float = 6.0
    token: float = 0.02
    kv: float = 0.00004

    def step_ms(self, plan: Plan, context: int) -> float:
        """context: sum over the decodes of the tokens in their KV."""
        tokens = len(plan.decodes) // 4 + sum(len(chunk.tokens) // 4 for chunk in plan.chunks)
        return self.fixed + self.token * tokens + self.kv * context


class _Slot:
    """Device state of a slot: its block table, its next position and its last token."""

    __slots__ = ("key", "last", "open", "position", "table")

    def __init__(self, opened: SlotOpen) -> None:
        self.open = opened
        self.table: list[int] = []
        self.position = opened.cached
        self.last = -1
        self.key = -1


class VirtualExecutor:
    """Plan in, StepDone out. Breaks of the plan's rules are AssertionErrors.

    observe: called as (rid, position, crc) for the last position of each row, where crc is that of the
    whole context as the pages hold it.
    """

    def __init__(
        self,
        *,
        pages: int,
        page_size: int,
        slots: int,
        vocab: int,
        cost: Cost | None = None,
        observe: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.vocab = vocab
        self.page_size = page_size
        self._cost = cost or Cost()
        self._observe = observe
        self._kv = np.full(pages * page_size, -1, np.int64)
        self._slots: list[_Slot | None] = [None] * slots
        self._epoch = -1

    def run(self, plan: Plan) -> StepDone:
        """One step."""
        if plan.epoch != self._epoch:
            self._epoch = plan.epoch
            self._slots = [None] * len(self._slots)
        self._update(plan)
        slots: list[int] = []
        tokens: list[int] = []
        for chunk in plan.chunks:
            self._prefill(chunk)
            if chunk.sample:
                slots.append(chunk.slot)
                tokens.append(self._sample(self._slot(chunk.slot)))
        context = 0
        for row in np.frombuffer(plan.decodes, "<i4").tolist():
            slot = self._slot(row)
            self._write(slot, [slot.last])
            context += slot.position
            slots.append(row)
            tokens.append(self._sample(slot))
        assert len(slots) == len(set(slots)), "a slot has two rows in one plan"
        return StepDone(
            plan.epoch,
            plan.step,
            np.array(slots, "<i4").tobytes(),
            np.array(tokens, "<i4").tobytes(),
            int(self._cost.step_ms(plan, context) * 1000),
        )

    def _update(self, plan: Plan) -> None:
        for row in plan.closes:
            assert self._slots[row] is not None, "a slot was closed twice"
            self._slots[row] = None
        for opened in plan.opens:
            assert self._slots[opened.slot] is None, "an open slot was opened"
            self._slots[opened.slot] = _Slot(opened)
        for grant in plan.grants:
            table = self._slot(grant.slot).table
            assert grant.first == len(table), "pages are granted in order"
            table += np.frombuffer(grant.pages, "<i4").tolist()

    def _slot(self, row: int) -> _Slot:
        slot = self._slots[row]
        assert slot is not None, f"slot {row} is not open"
        return slot

    def _at(self, slot: _Slot, position: int) -> int:
        return slot.table[position // self.page_size] * self.page_size + position % self.page_size

    def _prefill(self, chunk: Chunk) -> None:
        slot = self._slot(chunk.slot)
        tokens = np.frombuffer(chunk.tokens, "<i4").tolist()
        assert chunk.start == slot.position and tokens, "a chunk continues where the last one ended"
        self._write(slot, tokens)

    def _write(self, slot: _Slot, tokens: list[int]) -> None:
        """Compute the KV of `tokens` at the next positions of `slot`."""
        crc = int(self._kv[self._at(slot, slot.position - 1)]) if slot.position else 0
        assert crc >= 0, "a context was read that nobody computed"
        for token in tokens:
            crc = zlib.crc32(token.to_bytes(4, "little"), crc)
            self._kv[self._at(slot, slot.position)] = crc
            slot.position += 1
        if self._observe is not None:
            self._observe(slot.open.rid, slot.position - 1, crc)

    def _sample(self, slot: _Slot) -> int:
        opened = slot.open
        if slot.key < 0:
            prompt_crc = int(self._kv[self._at(slot, opened.prompt_len - 1)])
            slot.key = sequence_key(prompt_crc, opened.sampling)
        index = slot.position - opened.prompt_len
        slot.last = next_token(slot.key, opened.sampling, opened.choice, opened.prompt_len, index, self.vocab)
        return slot.last
