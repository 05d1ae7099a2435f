"""Log probabilities for the rows that ask, from the model's own distribution."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpu import draw_cpu
from gpu.cuda.staging import to_device
from protocols.plan import Logprobs
from protocols.sampling import MAX_TOP_LOGPROBS

Rows = npt.NDArray[np.intp]

_TILE = 1 << 17


@dataclasses.dataclass(frozen=True)
class LogprobRows:
    """What the rows that ask report, [m] or [m, top]; on a GPU, copies under way to the CPU.

    rows: index in the batch. wanted: how many of the top each reports. tokens: int64, -1 where the row
    failed. chosen, values: log probabilities, float32. ids: int64.
    """

    rows: Rows
    wanted: npt.NDArray[np.int64]
    tokens: Tensor
    chosen: Tensor
    ids: Tensor
    values: Tensor

    def report(self) -> list[tuple[int, Logprobs]]:
        """(row, Logprobs) of every row that did not fail, once the copies have arrived."""
        chosen, ids, values = self.chosen.tolist(), self.ids.tolist(), self.values.tolist()
        return [
            (int(row), Logprobs(chosen[i], tuple(ids[i][:wanted]), tuple(values[i][:wanted])))
            for i, (row, wanted) in enumerate(zip(self.rows, self.wanted, strict=True))
            if self.tokens[i] >= 0
        ]


class RawLogprobs:
    """The model's own distribution in rows [m] of logits [n, vocab], measured before anything edits them.

    The same number of the top is taken whatever a row wants, so that no row depends on its neighbours.
    edited: whether the logits of these rows will change before `choose`.
    """

    def __init__(self, logits: Tensor, rows: Rows, wanted: npt.NDArray[np.int64], *, edited: bool) -> None:
        self._rows, self._wanted = rows, wanted
        self._at = to_device(rows, logits.device)
        self._kept = logits[self._at] if edited else None
        top = min(MAX_TOP_LOGPROBS, logits.shape[1])
        if logits.device.type != "cpu":
            asking = logits[self._at] if self._kept is None else self._kept
            self._norm, self._ids, self._values = _measure(asking.float(), top)
            return
        tile = max(1, _TILE // logits.shape[1])
        starts = range(0, len(rows), tile)
        parts = [_measure(draw_cpu.rows_of(logits, rows[start : start + tile]), top) for start in starts]
        self._norm, self._ids, self._values = (torch.cat(column) for column in zip(*parts, strict=True))

    def choose(self, logits: Tensor, tokens: Tensor) -> LogprobRows:
        """With the tokens [n] that were chosen from the logits [n, vocab]."""
        tokens = tokens[self._at]
        picked = tokens.clamp(min=0)[:, None]
        source = logits[self._at[:, None], picked] if self._kept is None else self._kept.gather(1, picked)
        columns = (tokens, (source.float() - self._norm)[:, 0], self._ids, self._values)
        return LogprobRows(self._rows, self._wanted, *(c.to("cpu", non_blocking=True) for c in columns))


def _measure(logits: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """(log of the sum of exponentials [m, 1], ids [m, top], log probabilities [m, top])."""
    norm = logits.logsumexp(1, keepdim=True)
    ids, values = _leading(logits, top)
    return norm, ids, values - norm


def _leading(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Ids and values of the `top` greatest of each row, best first: [m, top]."""
    if logits.device.type == "cpu" and draw_cpu.has_maxima(logits, top):
        return _leading_cpu(logits, top)
    values, ids = logits.topk(top, dim=1)
    return ids, values


def _leading_cpu(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The same by way of a cut, which measures four times as fast; equals go by id."""
    array, rows = logits.numpy(), len(logits)
    flat, begins = draw_cpu.above(array, draw_cpu.kth_maxima(logits, np.full(rows, top)))
    values, ids = np.zeros((rows, top), np.float32), np.zeros((rows, top), np.int64)
    for row in range(rows):
        found = flat[begins[row] : begins[row + 1]] - row * array.shape[1]
        best = found[np.argsort(-array[row, found], kind="stable")[:top]]
        ids[row, : len(best)], values[row, : len(best)] = best, array[row, best]
    return torch.from_numpy(ids), torch.from_numpy(values)
