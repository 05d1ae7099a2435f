"""What lies between the matrix products of a decoder layer, each in one pass over its rows, in Triton.

Numbers are rounded to the model's precision only where they are stored.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu.kv_pool import LayerPages

_HEADS_OF_A_PROGRAM = 8


@triton.jit
def _add_norm(
    residual,
    delta,
    weight,
    out,
    eps,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ADDS: tl.constexpr,
):
    """Grid (rows,)."""
    at = tl.arange(0, PADDED)
    here = tl.program_id(0).to(tl.int64) * SIZE + at
    x = tl.load(residual + here, mask=at < SIZE, other=0.0)
    if ADDS:
        more = tl.load(delta + here, mask=at < SIZE, other=0.0)
        x = (x.to(tl.float32) + more.to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(residual + here, x, mask=at < SIZE)
    x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps)
    factor = tl.load(weight + at, mask=at < SIZE, other=0.0).to(tl.float32)
    tl.store(out + here, (x * scale * factor).to(out.dtype.element_ty), mask=at < SIZE)


def add_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """residual += delta, in place; RMSNorm of the sum. All [rows, size], the weight [size]."""
    rows, size = residual.shape
    out = torch.empty_like(residual)
    padded = triton.next_power_of_2(size)
    _add_norm[(rows,)](
        residual,
        delta,
        weight,
        out,
        eps,
        SIZE=size,
        PADDED=padded,
        ADDS=delta is not None,
        num_warps=4 if padded <= 4096 else 8,
    )
    return out


@triton.jit
def _gated(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (rows, blocks of SIZE)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + row * 2 * SIZE + at, mask=at < SIZE, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + at, mask=at < SIZE, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=at < SIZE)


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [rows, gate and up]: [rows, size]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    block = min(1024, triton.next_power_of_2(size))
    _gated[rows, triton.cdiv(size, block)](gate_up, out, SIZE=size, BLOCK=block)
    return out


@triton.jit
def _store_scaled(low, high, target, scales, here, HALF: tl.constexpr):
    """The halves of heads [BLOCK, PADDED] as 8-bit numbers, and the scale of each head."""
    low, high = low.to(tl.float32), high.to(tl.float32)
    greatest = tl.max(tl.where(here, tl.maximum(tl.abs(low), tl.abs(high)), 0.0), 1)
    scale = tl.maximum(greatest, 1e-12) / 448.0
    tl.store(scales, scale, mask=tl.max(here.to(tl.int32), 1) > 0)
    tl.store(target, (low / scale[:, None]).to(target.dtype.element_ty), mask=here)
    tl.store(target + HALF, (high / scale[:, None]).to(target.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["positions", "places"])
def _turn_and_store(
    qkv,
    row_stride,
    cos,
    sin,
    positions,
    norms,  # [heads + kv_heads, DIM]
    eps,
    keys,
    values,
    key_scales,
    value_scales,
    places,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    NORMS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Grid (rows, blocks of HEADS + 2 * KV_HEADS): queries first, then keys, then values. PADDED >= HALF."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.arange(0, PADDED)
    there = (head < HEADS + 2 * KV_HEADS)[:, None] & (at < HALF)[None, :]
    here = qkv + row * row_stride + head[:, None] * DIM + at[None, :]
    low, high = tl.load(here, mask=there, other=0.0), tl.load(here + HALF, mask=there, other=0.0)
    turns = there & (head < HEADS + KV_HEADS)[:, None]
    first, second = low.to(tl.float32), high.to(tl.float32)
    if NORMS:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        scale = tl.rsqrt(squares / DIM + eps)[:, None]
        factor = norms + head[:, None] * DIM + at[None, :]
        first = first * scale * tl.load(factor, mask=turns, other=0.0).to(tl.float32)
        second = second * scale * tl.load(factor + HALF, mask=turns, other=0.0).to(tl.float32)
    angle = tl.load(positions + row) * HALF + at
    c = tl.load(cos + angle, mask=at < HALF, other=0.0)[None, :]
    s = tl.load(sin + angle, mask=at < HALF, other=0.0)[None, :]
    turned = (first * c - second * s).to(qkv.dtype.element_ty)
    turned_high = (second * c + first * s).to(qkv.dtype.element_ty)
    asks = there & (head < HEADS)[:, None]
    tl.store(here, turned, mask=asks)
    tl.store(here + HALF, turned_high, mask=asks)
    place = tl.load(places + row).to(tl.int64)
    key = keys + (place * KV_HEADS + head - HEADS)[:, None] * DIM + at[None, :]
    is_key = turns & (head >= HEADS)[:, None] & (place >= 0)
    if SCALED:
        number = place * KV_HEADS + head - HEADS
        _store_scaled(turned, turned_high, key, key_scales + number, is_key, HALF)
        value = values + (number - KV_HEADS)[:, None] * DIM + at[None, :]
        is_value = there & (head >= HEADS + KV_HEADS)[:, None] & (place >= 0)
        _store_scaled(low, high, value, value_scales + number - KV_HEADS, is_value, HALF)
        return
    tl.store(key, turned, mask=is_key)
    tl.store(key + HALF, turned_high, mask=is_key)
    value = values + (place * KV_HEADS + head - HEADS - KV_HEADS)[:, None] * DIM + at[None, :]
    is_value = there & (head >= HEADS + KV_HEADS)[:, None] & (place >= 0)
    tl.store(value, low, mask=is_value)
    tl.store(value + HALF, high, mask=is_value)


def turn_and_store(
    qkv: Tensor,
    heads: int,
    tables: tuple[Tensor, Tensor],
    positions: Tensor,
    norms: Tensor | None,
    eps: float,
    pages: LayerPages,
    places: Tensor,
) -> Tensor:
    """Norm and rotate queries and keys, put keys and values into their pages: the queries [rows, heads, dim].

    qkv: [rows, (heads + 2 * kv_heads) * dim], overwritten. tables: cosine and sine, float32
    [context, dim / 2]. positions: int64 [rows]. norms: [heads + kv_heads, dim]. places: int32 [rows], none
    where negative.
    """
    kv_heads, dim = pages.keys.shape[2:]
    every = heads + 2 * kv_heads
    block = min(_HEADS_OF_A_PROGRAM, triton.next_power_of_2(every))
    _turn_and_store[len(qkv), triton.cdiv(every, block)](
        qkv,
        qkv.stride(0),
        *tables,
        positions,
        norms,
        eps,
        pages.keys,
        pages.values,
        pages.key_scales,
        pages.value_scales,
        places,
        HEADS=heads,
        KV_HEADS=kv_heads,
        BLOCK=block,
        DIM=dim,
        HALF=dim // 2,
        PADDED=triton.next_power_of_2(dim // 2),
        NORMS=norms is not None,
        SCALED=pages.key_scales is not None,
        num_warps=4,
    )
    return qkv[:, : heads * dim].view(len(qkv), heads, dim)
