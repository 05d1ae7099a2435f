"""Few rows times a matrix, in Triton. One of 8 bits is half as much to read, and becomes whole in registers.

Such a product takes as long as its matrix takes to be read, so all that counts is that enough of it is on
its way at any moment. How it is cut best for that depends on its shape and on the device: see
`gpu.cuda.tuning`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu.tiling import USUAL, Tiling


@triton.jit(do_not_specialize=["rows"])
def _product(
    x,
    numbers,
    scale,
    bias,
    out,
    rows,
    n,
    k,
    x_stride,
    out_stride,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of n,). All rows in one tile: the matrix is read once."""
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    left = x + row[:, None] * x_stride
    right = numbers + column.to(tl.int64)[None, :] * k
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, k, BLOCK):
        inner = start + tl.arange(0, BLOCK)
        vectors = tl.load(left + inner[None, :], mask=(row < rows)[:, None] & (inner < k)[None, :], other=0.0)
        matrix = tl.load(right + inner[:, None], mask=(column < n)[None, :] & (inner < k)[:, None], other=0.0)
        sums += tl.dot(vectors, matrix.to(vectors.dtype), input_precision=PRECISION)
    if SCALED:
        sums = sums * tl.load(scale + column, mask=column < n, other=0.0)[None, :]
    if BIAS:
        sums += tl.load(bias + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
    target = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
    tl.store(target, sums.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < n)[None, :])


def product(
    x: Tensor, numbers: Tensor, scale: Tensor | None, bias: Tensor | None, tiling: Tiling = USUAL
) -> Tensor:
    """y = (x Q^T) * scale + bias: x [T, k], T at most 64; numbers Q [n, k], in 8 bits with a scale, float32
    [n]."""
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, (n, k) = len(x), numbers.shape
    out = x.new_empty(rows, n)
    wide = x.dtype == torch.float32
    _product[(triton.cdiv(n, tiling.columns),)](
        x,
        numbers,
        scale,
        bias,
        out,
        rows,
        n,
        k,
        x.stride(0),
        out.stride(0),
        SCALED=scale is not None,
        BIAS=bias is not None,
        ROWS=max(16, triton.next_power_of_2(rows)),
        COLUMNS=tiling.columns,
        BLOCK=min(64 if wide else tiling.block, max(16, triton.next_power_of_2(k))),
        PRECISION="ieee" if wide else "tf32",
        num_warps=4,
        num_stages=tiling.stages,
    )
    return out
