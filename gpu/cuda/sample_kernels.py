"""Penalties, restrictions and the draw in Triton: the tokens of `gpu.draw`, without sorting a vocabulary.

A restriction is a threshold, and what reaches it is counted, or weighed, in exact integers. So the
threshold is
looked for digit by digit in the bits of the numbers, whose order is that of the numbers themselves: sixteen
passes over a row that lies in the cache, whatever top-k and top-p are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu import draw

_BLOCK = 4096
_SEEN_BLOCK = 1024
_SCALE: tl.constexpr = tl.constexpr(draw.SCALE)
_LEAST: tl.constexpr = tl.constexpr(-(2**31))


@triton.jit
def _numbers(row, at, vocab):
    """Logits as float32, of which no two that are equal differ in a bit; minus infinity past the end."""
    x = tl.load(row + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    return tl.where(x == 0.0, 0.0, x)


@triton.jit
def _ordered(x):
    """float32 as int32 in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _power(x, best, factor, lowest):
    """`gpu.draw.exponentials`, zero below the logit of order `lowest`."""
    return tl.where(_ordered(x) >= lowest, tl.exp2((x - best) * factor) * _SCALE, 0.0)


@triton.jit
def _threshold(row, vocab, best, factor, lowest, needed, WEIGHED: tl.constexpr, BLOCK: tl.constexpr):
    """Bits of the greatest number that as much as `needed` reaches: so many logits, or, WEIGHED, powers of so
    much weight. The least int32 where all together do not."""
    found = tl.full([], _LEAST, tl.int64)
    for digit in range(16):
        step = tl.full([], 1, tl.int64) << (30 - 2 * digit)
        first, second, third = (
            (found + step).to(tl.int32),
            (found + 2 * step).to(tl.int32),
            (found + 3 * step).to(tl.int32),
        )
        low = tl.zeros([BLOCK], tl.int64)
        middle = tl.zeros([BLOCK], tl.int64)
        high = tl.zeros([BLOCK], tl.int64)
        for start in range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = _numbers(row, at, vocab)
            if WEIGHED:
                power = _power(x, best, factor, lowest)
                amount = tl.where(at < vocab, power.to(tl.int64), 0)
                key = power.to(tl.int32, bitcast=True)
            else:
                amount = tl.where(at < vocab, 1, 0).to(tl.int64)
                key = _ordered(x)
            low += tl.where(key >= first, amount, 0)
            middle += tl.where(key >= second, amount, 0)
            high += tl.where(key >= third, amount, 0)
        reached = (tl.sum(low, 0) >= needed).to(tl.int64) + (tl.sum(middle, 0) >= needed).to(tl.int64)
        found += step * (reached + (tl.sum(high, 0) >= needed).to(tl.int64))
    return found.to(tl.int32)


@triton.jit
def _weights(row, at, vocab, best, factor, lowest, least):
    """Integer weights of the tokens that are left, int64."""
    power = _power(_numbers(row, at, vocab), best, factor, lowest)
    kept = (at < vocab) & (power.to(tl.int32, bitcast=True) >= least)
    return tl.where(kept, power.to(tl.int64), 0)


@triton.jit
def _total(row, vocab, best, factor, lowest, least, BLOCK: tl.constexpr):
    sums = tl.zeros([BLOCK], tl.int64)
    for start in range(0, vocab, BLOCK):
        sums += _weights(row, start + tl.arange(0, BLOCK), vocab, best, factor, lowest, least)
    return tl.sum(sums, 0)


@triton.jit(
    do_not_specialize=["rows", "bests", "factors", "top_ks", "top_ps", "floors", "points", "out"],
)
def _choose(
    logits, stride, rows, bests, factors, top_ks, top_ps, floors, points, out, vocab, BLOCK: tl.constexpr
):
    """Grid (drawn rows,)."""
    drawn = tl.program_id(0)
    number = tl.load(rows + drawn)
    row = logits + number.to(tl.int64) * stride
    best, factor = tl.load(bests + number), tl.load(factors + drawn)
    top_k, top_p = tl.load(top_ks + drawn).to(tl.int64), tl.load(top_ps + drawn)
    lowest = tl.full([], _LEAST, tl.int32)
    if top_k < vocab:
        lowest = _threshold(row, vocab, best, factor, lowest, top_k, False, BLOCK)
    least = tl.load(floors + drawn).to(tl.int32, bitcast=True)
    if top_p < 1.0:
        share = _total(row, vocab, best, factor, lowest, 0, BLOCK).to(tl.float64) * top_p
        needed = share.to(tl.int64)
        needed += (needed.to(tl.float64) < share).to(tl.int64)
        least = tl.maximum(least, _threshold(row, vocab, best, factor, lowest, needed, True, BLOCK))
    total = _total(row, vocab, best, factor, lowest, least, BLOCK)
    target = (tl.load(points + drawn) * total.to(tl.float64)).to(tl.int64)
    sums = tl.zeros([], tl.int64)
    before = tl.zeros([], tl.int64)
    begin = tl.full([], -1, tl.int32)
    for start in range(0, vocab, BLOCK):
        after = sums + tl.sum(
            _weights(row, start + tl.arange(0, BLOCK), vocab, best, factor, lowest, least), 0
        )
        here = (begin < 0) & (after > target)
        before = tl.where(here, sums, before)
        begin = tl.where(here, start, begin)
        sums = after
    at = tl.maximum(begin, 0) + tl.arange(0, BLOCK)
    ends = before + tl.cumsum(_weights(row, at, vocab, best, factor, lowest, least), 0)
    offset = tl.sum((ends <= target).to(tl.int32), 0)
    tl.store(out + drawn, tl.minimum(tl.maximum(begin, 0) + offset, vocab - 1).to(tl.int64))


def choose(logits: Tensor, rows: Tensor, best: Tensor, limits: draw.Limits) -> Tensor:
    """See `gpu.draw.choose`."""
    assert logits.stride(1) == 1
    vocab = logits.shape[1]
    out = torch.empty_like(rows)
    _choose[(len(rows),)](
        logits,
        logits.stride(0),
        rows,
        best,
        draw.factor(limits.temperature),
        limits.top_k,
        limits.top_p,
        draw.floor(limits.min_p),
        limits.uniform,
        out,
        vocab,
        BLOCK=min(_BLOCK, triton.next_power_of_2(vocab)),
        num_warps=16,
    )
    return out


@triton.jit(
    do_not_specialize=["logits_stride", "rows", "numbers", "lengths", "strengths", "seen_stride"],
)
def _penalise(
    logits,
    logits_stride,
    rows,  # int64 [n], of the logits
    numbers,  # int64 [n], rows of the tables
    lengths,  # int64 [n], of what has been seen
    strengths,  # float32 [n, 3]
    counts,  # int32 [., vocab]
    seen,  # int64 [., width], -1 where the token is there already
    seen_stride,
    vocab,
    OUTPUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (n, blocks of the longest): each token that has been seen once."""
    which = tl.program_id(0)
    number = tl.load(numbers + which)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(seen + number * seen_stride + at, mask=at < tl.load(lengths + which), other=-1)
    there = token >= 0
    repetition, presence, frequency = (
        tl.load(strengths + which * 3),
        tl.load(strengths + which * 3 + 1),
        tl.load(strengths + which * 3 + 2),
    )
    place = logits + tl.load(rows + which) * logits_stride + token
    x = tl.load(place, mask=there, other=0.0)
    output = tl.load(counts + number * vocab + token, mask=there, other=0) & OUTPUT
    x = tl.where(x > 0, x / repetition, x * repetition)
    x = x - frequency * output.to(tl.float32) - tl.where(output > 0, presence, 0.0)
    tl.store(place, x, mask=there)


def penalise(
    logits: Tensor,
    rows: Tensor,
    numbers: Tensor,
    lengths: Tensor,
    strengths: Tensor,
    counts: Tensor,
    seen: Tensor,
    longest: int,
    mask: int,
) -> None:
    """Penalise rows [n] of float32 logits in place. numbers: their rows in the tables `counts` and `seen` of
    `gpu.penalties`; lengths: of `seen`, `longest` at most; strengths: repetition, presence, frequency;
    mask: the bits of a count that count output."""
    if longest == 0:
        return
    _penalise[len(rows), triton.cdiv(longest, _SEEN_BLOCK)](
        logits,
        logits.stride(0),
        rows,
        numbers,
        lengths,
        strengths,
        counts,
        seen,
        seen.stride(0),
        counts.shape[1],
        OUTPUT=mask,
        BLOCK=_SEEN_BLOCK,
    )


@triton.jit(do_not_specialize=["tokens", "rows", "numbers", "lengths", "seen_stride"])
def _count(tokens, rows, numbers, lengths, counts, seen, seen_stride, vocab):
    """Grid (n,)."""
    which = tl.program_id(0)
    number = tl.load(numbers + which)
    token = tl.maximum(tl.load(tokens + tl.load(rows + which)), 0)
    place = counts + number * vocab + token
    count = tl.load(place)
    tl.store(seen + number * seen_stride + tl.load(lengths + which), tl.where(count == 0, token, -1))
    tl.store(place, count + 1)


def count(
    tokens: Tensor, rows: Tensor, numbers: Tensor, lengths: Tensor, counts: Tensor, seen: Tensor
) -> None:
    """Count the tokens of rows [n] in the tables, see `penalise`; -1 as token 0."""
    shape = seen, seen.stride(0), counts.shape[1]
    _count[(len(rows),)](tokens, rows, numbers, lengths, counts, *shape, num_warps=1)
