"""Few rows times a matrix of 8 bits, in Triton: what is read is half as much, and becomes whole in
registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 32


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
    sums = sums * tl.load(scale + column, mask=column < n, other=0.0)[None, :]
    if BIAS:
        sums += tl.load(bias + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
    target = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
    tl.store(target, sums.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < n)[None, :])


def product(x: Tensor, numbers: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """See `gpu.quantized.Quantized.linear`."""
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, (n, k) = len(x), numbers.shape
    out = x.new_empty(rows, n)
    wide = x.dtype == torch.float32
    _product[(triton.cdiv(n, _COLUMNS),)](
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
        BIAS=bias is not None,
        ROWS=max(16, triton.next_power_of_2(rows)),
        COLUMNS=_COLUMNS,
        BLOCK=min(64 if wide else 256, max(16, triton.next_power_of_2(k))),
        PRECISION="ieee" if wide else "tf32",
        num_warps=4,
        num_stages=3,
    )
    return out
