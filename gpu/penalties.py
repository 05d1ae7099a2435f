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


class Penalties:
    """Token counts of the penalised slots, in tables that grow as they are needed."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device) -> None:
        self._device = device
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
        ids = torch.from_numpy(seen).to(self._device)
        self._counts[row].zero_()
        self._counts[row].index_copy_(0, ids, torch.from_numpy(counts.astype(np.int32)).to(self._device))
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
        index = self._to_device(rows)[:, None]
        ids = self._visited(rows, index)
        at = self._to_device(where)[:, None]
        repetition, presence, frequency = (
            torch.from_numpy(self._strength[rows]).to(self._device).T[:, :, None]
        )
        output = self._counts[index, ids] & (_IN_PROMPT - 1)
        values = logits[at, ids]
        values = torch.where(values > 0, values / repetition, values * repetition)
        logits[at, ids] = values - frequency * output - presence * (output > 0)

    def count(self, tokens: Tensor, where: Rows, slots: npt.NDArray[np.int32]) -> None:
        """Count the tokens [n] just sampled in rows `where`; a failed row's -1 is counted as token 0."""
        rows = self._row_of[slots]
        self._widen(int(self._seen_len[rows].max()) + 1)
        index, sampled = self._to_device(rows), tokens[self._to_device(where)].clamp(min=0)
        self._counts[index, sampled] += 1
        self._seen[index, self._to_device(self._seen_len[rows])] = sampled
        self._seen_len[rows] += 1

    def _visited(self, rows: Rows, index: Tensor) -> Tensor:
        """Ids of the tokens seen, [rows, longest]; shorter rows repeat their first, which changes nothing."""
        lengths = self._to_device(self._seen_len[rows])[:, None]
        longest = int(self._seen_len[rows].max())
        columns = torch.arange(longest, device=self._device)
        ids = self._seen[index, columns]
        return torch.where(columns < lengths, ids, ids[:, :1])

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
