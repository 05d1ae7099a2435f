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

from protocols.oracle import guesses, next_token, sequence_key
from protocols.plan import Chunk, Plan, SlotOpen, StepDone


@dataclasses.dataclass(frozen=True)
class Cost:
    """Milliseconds of a step: fixed + token x tokens + kv x tokens attended to by decodes.

    The defaults are of the order of an 8B model in bf16 on one H100-class GPU.
    """

    fixed: float = 6.0
    token: float = 0.02
    kv: float = 0.00004

    def step_ms(self, plan: Plan, context: int, guesses: int) -> float:
        """context: sum over the decodes of the tokens in their KV. guesses: rows beyond those of the plan."""
        tokens = guesses + len(plan.decodes) // 4 + sum(len(chunk.tokens) // 4 for chunk in plan.chunks)
        return self.fixed + self.token * tokens + self.kv * context


_WRONG = 1 << 40
"""The KV of a wrong guess: no CRC."""


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
        self._speculated = False

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
        assert len(plan.drafts) in (0, len(plan.decodes)), "guesses are allowed to each decode, or to none"
        decodes = np.frombuffer(plan.decodes, "<i4").tolist()
        assert len(slots) + len(decodes) == len({*slots, *decodes}), "a slot has two rows in one plan"
        allowed = np.frombuffer(plan.drafts, "<i4").tolist() or [0] * len(decodes)
        context = drafted = accepted = 0
        assert plan.rounds == 1 or not (plan.chunks or plan.drafts), "only plain decodes run in rounds"
        for _ in range(plan.rounds):
            for row, most in zip(decodes, allowed, strict=True):
                slot = self._slot(row)
                sampled, tried = self._decode(slot, most)
                context += slot.position
                drafted, accepted = drafted + tried, accepted + max(0, len(sampled) - 1)
                slots += [row] * len(sampled)
                tokens += sampled
        return StepDone(
            plan.epoch,
            plan.step,
            np.array(slots, "<i4").tobytes(),
            np.array(tokens, "<i4").tobytes(),
            int(self._cost.step_ms(plan, context // plan.rounds, drafted) * 1000) * plan.rounds,
            drafted=drafted,
            accepted=accepted,
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

    def _decode(self, slot: _Slot, most: int) -> tuple[list[int], int]:
        """The tokens that a decode with `most` guesses at most gives, and how many it guessed."""
        opened = slot.open
        assert opened.sampling.max_tokens is not None
        end = min(opened.prompt_len + opened.sampling.max_tokens - 1, len(slot.table) * self.page_size)
        room = end - slot.position
        if room <= 0:
            assert self._speculated, "a slot has a row and nothing left to sample"
            return [], 0
        index = slot.position + 1 - opened.prompt_len
        options = opened.sampling, opened.choice, opened.prompt_len, index, min(most, room - 1), self.vocab
        drafts = guesses(slot.key, *options) if opened.sampling.draftable else ()
        self._speculated |= bool(drafts)
        self._write(slot, [slot.last])
        sampled = [self._sample(slot)]
        for i, draft in enumerate(drafts):
            if draft != slot.last:
                self._scribble(slot, drafts[i:])
                break
            self._write(slot, [draft])
            sampled.append(self._sample(slot))
        return sampled, len(drafts)

    def _scribble(self, slot: _Slot, tokens: tuple[int, ...]) -> None:
        """Leave the KV of wrong guesses at the next positions."""
        for offset in range(len(tokens)):
            self._kv[self._at(slot, slot.position + offset)] = _WRONG

    def _write(self, slot: _Slot, tokens: list[int]) -> None:
        """Compute the KV of `tokens` at the next positions of `slot`."""
        crc = int(self._kv[self._at(slot, slot.position - 1)]) if slot.position else 0
        assert 0 <= crc < _WRONG, "a context was read that nobody computed, or that was a wrong guess"
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
            slot.key = sequence_key(prompt_crc, opened.sampling, opened.adapter)
        index = slot.position - opened.prompt_len
        slot.last = next_token(slot.key, opened.sampling, opened.choice, opened.prompt_len, index, self.vocab)
        return slot.last
