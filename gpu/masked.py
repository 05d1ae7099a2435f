"""Rows under a mask, on a CPU: they are drawn by a kernel that does not look at what is forbidden.

How a row is drawn depends on its mask and its parameters alone, so its token still is a function of the row.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gpu.cpu.library import Kernels, Longs, Masks

_LIMITS = np.dtype(
    [("temperature", "f8"), ("top_p", "f8"), ("min_p", "f8"), ("uniform", "f8"), ("top_k", "i8")]
)
_FEW = 16
"""One token of so many may be sorted here."""


@dataclasses.dataclass(frozen=True)
class Masked:
    """rows: their indices in a batch, [m]. masks: uint32 [m, words], a bit for each token."""

    rows: npt.NDArray[np.intp]
    masks: Masks
    kernels: Kernels

    def choose(
        self, logits: Tensor, asked: npt.NDArray[np.void], uniform: npt.NDArray[np.float64], greedy: int
    ) -> tuple[Longs, npt.NDArray[np.float32]]:
        """Tokens and greatest logits, [m] each, for the float32 logits [n, vocab] of the batch; asked and
        uniform [n] as `CpuDraw.choose` takes them. A token means nothing where the greatest logit is not
        finite; it is -1 where another draw has to find it, for which the row is ready. greedy: the kind of
        rows that are not drawn."""
        limits, mine = np.empty(len(self.rows), _LIMITS), asked[self.rows]
        for name in ("temperature", "top_p", "min_p", "top_k"):
            limits[name] = mine[name]
        limits["temperature"][mine["kind"] == greedy] = 0
        limits["uniform"] = uniform[self.rows]
        most = logits.shape[1] // _FEW
        return self.kernels.draw_masked(logits, self.rows, self.masks, limits, most)
