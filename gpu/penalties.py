"""Repetition, presence and frequency penalties, from token counts that live on the device.

A penalised slot has a row in two tables: how often each token occurred (dense, to look up) and which tokens
occurred (a list, to visit). Only visited tokens are touched, so the cost follows the length of the text and
not the vocabulary. Sampled tokens are counted on the device in stream order: a step may be launched before
the tokens of the step before it have reached the CPU.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpu.cuda.staging import to_device
from protocols.plan import SlotOpen

Rows = npt.NDArray[np.intp]

_IN_PROMPT = 1 << 30
"""Flag beside the output count: repetition penalty sees prompt and output, the others the output only."""


_AGAIN = -1
"""In the list of what occurred, for a token that is there already."""


class Penalties:
    """Token counts of the penalised slots, in tables that grow as they are needed."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device, *, fused: bool = False) -> None:
        """fused: by Triton's kernels."""
        self._device, self._fused = device, fused
        self._row_of = np.full(slots, -1, np.intp)
        self._free: list[int] = []
        self._counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        self._seen = torch.zeros((0, 256), dtype=torch.int64, device=device)
        self._seen_len = np.zeros(0, np.int64)
        self._strength = np.zeros((0, 3), np.float32)

    def open(self, opening: SlotOpen) -> None:
        """Start to count for a slot, from the tokens known so far (`opening.history`)."""
        self.close(opening.slot)
        row = self._take_row()
        self._row_of[opening.slot] = row
        history = np.frombuffer(opening.history, "<i4").astype(np.int64)
        seen, place = np.unique(history, return_inverse=True)
        counts = np.bincount(place[opening.prompt_len :], minlength=len(seen))
        counts[place[: opening.prompt_len]] |= _IN_PROMPT
        self._widen(len(seen))
        ids = self._to_device(seen)
        self._counts[row].zero_()
        self._counts[row].index_copy_(0, ids, to_device(counts.astype(np.int32), self._device))
        self._seen[row, : len(seen)] = ids
        self._seen_len[row] = len(seen)
        sampling = opening.sampling
        self._strength[row] = (
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        )

    def close(self, slot: int) -> None:
        """Forget a slot; nothing happens when it has no counts."""
        if self._row_of[slot] >= 0:
            self._free.append(int(self._row_of[slot]))
            self._row_of[slot] = -1

    def apply(self, logits: Tensor, where: Rows, slots: npt.NDArray[np.int32]) -> None:
        """Penalise rows `where` of float32 logits [n, vocab] in place; slots[i] belongs to where[i].

        Repetition (Keskar et al., 2019): a positive logit of a seen token is divided by the penalty, a
        negative one multiplied. Presence and frequency as OpenAI defines them: subtracted once, and for
        each occurrence.
        """
        rows = self._row_of[slots]
        strengths = to_device(self._strength[rows], self._device)
        index, at = self._to_device(rows), self._to_device(where)
        if self._fused:
            from gpu.cuda.sample_kernels import penalise

            lengths = self._seen_len[rows]
            tables = self._to_device(lengths), strengths, self._counts, self._seen
            penalise(logits, at, index, *tables, int(lengths.max()), _IN_PROMPT - 1)
            return
        index, at = index[:, None], at[:, None]
        ids = self._visited(rows, index)
        repetition, presence, frequency = strengths.T[:, :, None]
        output = self._counts[index, ids] & (_IN_PROMPT - 1)
        values = logits[at, ids]
        values = torch.where(values > 0, values / repetition, values * repetition)
        logits[at, ids] = values - frequency * output - presence * (output > 0)

    def count(self, tokens: Tensor, where: Rows, slots: npt.NDArray[np.int32]) -> None:
        """Count the tokens [n] just sampled in rows `where`; a failed row's -1 is counted as token 0."""
        rows = self._row_of[slots]
        self._widen(int(self._seen_len[rows].max()) + 1)
        index, at, ends = (self._to_device(each) for each in (rows, where, self._seen_len[rows]))
        self._seen_len[rows] += 1
        if self._fused:
            from gpu.cuda.sample_kernels import count

            count(tokens, at, index, ends, self._counts, self._seen)
            return
        sampled = tokens[at].clamp(min=0)
        before = self._counts[index, sampled]
        self._counts[index, sampled] = before + 1
        self._seen[index, ends] = torch.where(before == 0, sampled, _AGAIN)

    def _visited(self, rows: Rows, index: Tensor) -> Tensor:
        """Ids of the tokens seen, [rows, longest]; where there is none a row has its first, which changes
        nothing."""
        lengths = self._to_device(self._seen_len[rows])[:, None]
        longest = int(self._seen_len[rows].max())
        columns = torch.arange(longest, device=self._device)
        ids = self._seen[index, columns]
        return torch.where((columns < lengths) & (ids != _AGAIN), ids, ids[:, :1])

    def _take_row(self) -> int:
        if not self._free:
            rows = self._counts.shape[0]
            more = max(1, rows)
            self._counts = torch.nn.functional.pad(self._counts, (0, 0, 0, more))
            self._seen = torch.nn.functional.pad(self._seen, (0, 0, 0, more))
            self._seen_len = np.pad(self._seen_len, (0, more))
            self._strength = np.pad(self._strength, ((0, more), (0, 0)))
            self._free.extend(range(rows, rows + more))
        return self._free.pop()

    def _widen(self, length: int) -> None:
        width = self._seen.shape[1]
        if length > width:
            self._seen = torch.nn.functional.pad(self._seen, (0, max(width, length - width)))

    def _to_device(self, values: npt.NDArray[np.int64]) -> Tensor:
        return to_device(values.astype(np.int64, copy=False), self._device)
