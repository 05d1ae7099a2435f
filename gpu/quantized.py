"""Weights in 8 bits: integers or floating-point numbers (e4m3), with a scale for each row of a matrix.

    y = (x Q^T) * scale      Q [n, k] in 8 bits, scale [n], x and y in the model's precision

Only weights have 8 bits; products and sums are those of the model's precision. On a GPU a few rows are
multiplied by a kernel that reads 8 bits, and many by the library, with the matrix written out for it,
which takes little of the time that they compute.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from gpu.kv_pool import EIGHT_BITS, GREATEST
from gpu.tiling import USUAL, Tiling
from protocols.config import Quantization

FEW_ROWS = 64
"""Up to so many, a product takes as long as its matrix takes to be read."""

FUSED = ("cuda",)
"""Types of devices where few rows go through Triton's kernel; its interpreter would be slow."""

_PIECE = 1 << 24
"""Numbers that are converted at a time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Quantized:
    """numbers: int8 or e4m3 [n, k]; scale: float32 [n]; dtype: of what they stand for."""

    numbers: Tensor
    scale: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: Tensor, kind: Quantization) -> Quantized:
        """Round to nearest; the greatest of a row becomes the greatest there is."""
        whole = kind is Quantization.INT8
        numbers = torch.empty(weight.shape, dtype=torch.int8 if whole else EIGHT_BITS, device=weight.device)
        scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        step = max(1, _PIECE // weight.shape[1])
        for start in range(0, len(weight), step):
            part = weight[start : start + step].float()
            found = part.abs().amax(1).clamp_(min=1e-12) / (127.0 if whole else GREATEST)
            part = part / found[:, None]
            numbers[start : start + step] = (part.round_() if whole else part).to(numbers.dtype)
            scale[start : start + step] = found
        return cls(numbers, scale, weight.dtype)

    def rows(self) -> Tensor:
        """What they stand for: [n, k]."""
        return (self.numbers.float() * self.scale[:, None]).to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None, tiling: Tiling | None = None) -> Tensor:
        """[T, k] -> [T, n]. tiling: of few rows on a GPU."""
        if x.device.type in FUSED and len(x) <= FEW_ROWS:
            # Triton is imported only where its kernels run.
            from gpu.cuda.product_kernels import product

            return product(x, self.numbers, self.scale, bias, tiling or USUAL)
        y = functional.linear(x, self.numbers.to(x.dtype)).mul_(self.scale)
        return y if bias is None else y.add_(bias)
