"""Rows that each go through one of several matrices, as one product, in Triton: experts, and LoRA's factors.

Rows are sorted by their group, and a program computes a tile of rows of one group. Which tile that is it
finds by itself, from where the groups begin: nothing of it is known to the host, so a CUDA graph may
replay it for other rows. A row of no group (-1) is not touched.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

_FEW_ROWS, _MANY_ROWS = 16, 64


@dataclasses.dataclass(frozen=True, slots=True)
class Groups:
    """order: int64 [n], items by their groups, those of none first. starts: int64 [groups + 1], where each
    group begins in it, and n. count: of groups."""

    order: Tensor
    starts: Tensor
    count: int

    @classmethod
    def of(cls, numbers: Tensor, count: int) -> Groups:
        """numbers: int64 [n], the group of each item, 0 to count - 1, or -1."""
        found, order = numbers.sort(stable=True)
        every = torch.arange(count + 1, device=numbers.device)
        return cls(order, torch.searchsorted(found, every), count)


@triton.jit(do_not_specialize=["order", "starts", "factors"])
def _grouped(
    x,
    weights,
    out,
    order,
    starts,
    factors,  # float32 [items]
    scales,  # float32 [groups, n], of matrices of 8 bits
    widths,  # int32 [groups], multiples of 16
    x_stride,
    group_stride,
    row_stride,
    column_stride,
    out_stride,
    n,
    k,
    GROUPS: tl.constexpr,
    PADDED: tl.constexpr,
    SHARED: tl.constexpr,
    ADDS: tl.constexpr,
    WEIGHED: tl.constexpr,
    SCALED: tl.constexpr,
    NARROW_N: tl.constexpr,
    NARROW_K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of rows at most, tiles of n)."""
    tile = tl.program_id(0)
    every = tl.arange(0, PADDED)
    begins = tl.load(starts + every, mask=every < GROUPS, other=0).to(tl.int32)
    ends = tl.load(starts + every + 1, mask=every < GROUPS, other=0).to(tl.int32)
    tiles = (ends - begins + ROWS - 1) // ROWS
    group = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    if group >= GROUPS:
        return
    before = tl.sum(tl.where(every < group, tiles, 0), 0)
    at = tl.load(starts + group) + (tile - before) * ROWS + tl.arange(0, ROWS)
    there = at < tl.load(starts + group + 1)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if NARROW_N:
        n = tl.minimum(n, tl.load(widths + group))
        if tl.program_id(1) * COLUMNS >= n:
            return
    if NARROW_K:
        k = tl.multiple_of(tl.load(widths + group), 16)
    item = tl.load(order + at, mask=there, other=0)
    rows = x + (item // SHARED) * x_stride
    matrix = weights + group.to(tl.int64) * group_stride + column.to(tl.int64) * row_stride
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, k, BLOCK):
        inner = start + tl.arange(0, BLOCK)
        left = tl.load(rows[:, None] + inner[None, :], mask=there[:, None] & (inner < k)[None, :], other=0.0)
        right = tl.load(
            matrix[None, :] + inner[:, None] * column_stride,
            mask=(column < n)[None, :] & (inner < k)[:, None],
            other=0.0,
        )
        sums += tl.dot(left, right.to(left.dtype), input_precision=PRECISION)
    if SCALED:
        place = scales + group.to(tl.int64) * n + column
        sums = sums * tl.load(place, mask=column < n, other=0.0)[None, :]
    if WEIGHED:
        sums = sums * tl.load(factors + item, mask=there, other=0.0)[:, None]
    target = out + item[:, None] * out_stride + column[None, :]
    kept = there[:, None] & (column < n)[None, :]
    if ADDS:
        sums += tl.load(target, mask=kept, other=0.0).to(tl.float32)
    tl.store(target, sums.to(out.dtype.element_ty), mask=kept)


def grouped(
    x: Tensor,
    weights: Tensor,
    groups: Groups,
    out: Tensor,
    *,
    shared: int = 1,
    factors: Tensor | None = None,
    scale: Tensor | None = None,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    adds: bool = False,
) -> Tensor:
    """out[item] = x[item // shared] W^T, W = weights[group of the item], times factors[item]; `adds`: added.

    x: [., k]. weights: [groups, n, k], in 8 bits with a scale, float32 [groups, n]. out: [items, n].
    rows, columns: int32 [groups], of n and of k that a group's matrix has, multiples of 16; what lies beyond
    is neither read nor written.
    """
    assert x.stride(1) == out.stride(1) == 1 and (scale is None or rows is None)
    items, (_, n, k) = len(groups.order), weights.shape
    height = _FEW_ROWS if items <= 4 * _FEW_ROWS * groups.count else _MANY_ROWS
    width = min(64, max(16, triton.next_power_of_2(n)))
    wide = x.dtype == torch.float32
    tiles = min(items, triton.cdiv(items, height) + groups.count)
    _grouped[tiles, triton.cdiv(n, width)](
        x,
        weights,
        out,
        groups.order,
        groups.starts,
        factors,
        scale,
        columns if rows is None else rows,
        x.stride(0),
        *weights.stride(),
        out.stride(0),
        n,
        k,
        GROUPS=groups.count,
        PADDED=triton.next_power_of_2(groups.count),
        SHARED=shared,
        ADDS=adds,
        WEIGHED=factors is not None,
        SCALED=scale is not None,
        NARROW_N=rows is not None,
        NARROW_K=columns is not None,
        ROWS=height,
        COLUMNS=width,
        BLOCK=min(32 if wide else 128, max(16, triton.next_power_of_2(k))),
        PRECISION="ieee" if wide else "tf32",
        num_warps=4,
        num_stages=3,
    )
    return out
