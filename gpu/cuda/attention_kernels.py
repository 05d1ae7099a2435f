"""Attention over pages, in Triton.

A program attends for a tile of query rows of one sequence with one KV head. The query heads that share the KV
head are rows of the tile too, so that keys and values are read once for all of them:

    row r of a tile of tokens t0, t0 + 1, ... = token t0 + r // group, query head kv_head * group + r % group

Prefill has a program for each tile. A decode has one row of tokens, so its context is parted instead, among
up to SPLITS programs, and a second kernel joins what they found. Where the parts begin depends on the context
alone, so that a row gets the same bits in any crowd.

Softmax is computed in powers of two; scores carry the factor log2(e).

Nothing is specialised on what changes from step to step (where the numbers of a part of a batch begin): a
kernel that is compiled in the midst of serving is a pause of everybody.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _walk(
    query,  # [ROWS, PAD_KEY]
    positions,  # int32 [ROWS], -1 for a row that is not there
    first,
    last,  # the keys at first .. last - 1
    table,
    keys,
    values,
    key_stride,
    value_stride,  # of a place
    key_scales,
    value_scales,  # float32, of what has 8 bits
    scale_stride,
    scale,
    cap,
    window,
    PAGE: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    PAD_KEY: tl.constexpr,
    PAD_VALUE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum of weighted values [ROWS, PAD_VALUE], greatest score [ROWS], sum of weights [ROWS]."""
    key_dims = tl.arange(0, PAD_KEY)
    value_dims = tl.arange(0, PAD_VALUE)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, PAD_VALUE], tl.float32)
    for start in range(first, last, BLOCK):
        at = start + tl.arange(0, BLOCK)
        known = at < last
        page = tl.load(table + at // PAGE, mask=known, other=0)
        place = page.to(tl.int64) * PAGE + at % PAGE
        key = tl.load(
            keys + place[None, :] * key_stride + key_dims[:, None],
            mask=known[None, :] & (key_dims < KEY)[:, None],
            other=0.0,
        )
        scores = tl.dot(query, key.to(query.dtype), input_precision=PRECISION) * scale
        if SCALED:
            scores *= tl.load(key_scales + place * scale_stride, mask=known, other=0.0)[None, :]
        if CAPPED:
            small = tl.exp(-2.0 * tl.abs(scores / cap))
            bent = cap * (1.0 - small) / (1.0 + small)
            scores = tl.where(scores < 0, -bent, bent)
        seen = known[None, :] & (at[None, :] <= positions[:, None])
        if WINDOWED:
            seen = seen & (at[None, :] > positions[:, None] - window)
        scores = tl.where(seen, scores * LOG2E, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - level[:, None])
        shrink = tl.exp2(best - level)
        value = tl.load(
            values + place[:, None] * value_stride + value_dims[None, :],
            mask=known[:, None] & (value_dims < VALUE)[None, :],
            other=0.0,
        )
        total = total * shrink + tl.sum(weights, 1)
        if SCALED:
            weights *= tl.load(value_scales + place * scale_stride, mask=known, other=0.0)[None, :]
        value = value.to(query.dtype)
        sums = sums * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
        best = higher
    return sums, best, total


@triton.jit
def _part(context, window, SPLITS: tl.constexpr, LEAST: tl.constexpr, WINDOWED: tl.constexpr):
    """First position that a decode of this context sees, and the size of its parts."""
    first = 0
    if WINDOWED:
        first = tl.maximum(0, context - window)
    share = (context - first + SPLITS - 1) // SPLITS
    return first, (share + LEAST - 1) // LEAST * LEAST


@triton.jit
def _whole(sums, best, total, sinks, heads, there, SINKS: tl.constexpr):
    """What `_walk` found of all keys of rows, as their attention: [ROWS, PAD_VALUE]."""
    if SINKS:
        sink = tl.load(sinks + heads, mask=there, other=0.0).to(tl.float32) * LOG2E
        higher = tl.maximum(best, sink)
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.exp2(sink - higher)
        sums = sums * shrink[:, None]
    return sums / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def _keep_part(sums, best, total, target, level, there, PAD_VALUE: tl.constexpr):
    """What `_walk` found of a part of the keys of rows, for `join`; a row's goes to its target and level."""
    dims = tl.arange(0, PAD_VALUE)
    tl.store(target[:, None] + dims[None, :], sums, mask=there[:, None] & (dims < PAD_VALUE)[None, :])
    tl.store(level, best, mask=there)
    tl.store(level + 1, total, mask=there)


@triton.jit(do_not_specialize=["starts", "contexts", "tables", "table_stride"])
def attend(
    query,
    out,
    levels,  # float32 [sequences, heads, SPLITS, 2]; none without parts
    keys,
    values,
    key_scales,
    value_scales,
    sinks,
    starts,
    contexts,
    tables,
    query_stride,
    query_head_stride,
    out_stride,
    out_head_stride,
    key_stride,
    value_stride,
    scale_stride,
    table_stride,
    scale,
    cap,
    window,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    PAGE: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    PAD_KEY: tl.constexpr,
    PAD_VALUE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    SCALED: tl.constexpr,
    SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of the longest sequence, kv_heads, sequences); a tile has TOKENS <= ROWS / GROUP tokens.

    With SPLITS, sequences have one row each and the grid is (SPLITS, kv_heads, sequences): what one part of a
    context gives to the row goes to `levels` and, float32 [sequences, heads, SPLITS, PAD_VALUE], to `out`.
    """
    head, sequence = tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts + sequence)
    begin = tl.load(starts + sequence)
    length = tl.load(starts + sequence + 1) - begin
    if SPLITS:
        token = 0
        seen, size = _part(context, window, SPLITS, LEAST, WINDOWED)
        first = seen + tl.program_id(0) * size
        last = tl.minimum(first + size, context)
        if first >= context:
            return
    else:
        token = tl.program_id(0) * TOKENS
        if token >= length:
            return
        first = 0
        if WINDOWED:
            first = tl.maximum(0, context - length + token - window + 1)
        last = tl.minimum(context - length + token + TOKENS, context)
    before = context - length
    rows = tl.arange(0, ROWS)
    tokens = token + rows // GROUP
    there = (rows < TOKENS * GROUP) & (tokens < length)
    heads = head * GROUP + rows % GROUP
    key_dims, value_dims = tl.arange(0, PAD_KEY), tl.arange(0, PAD_VALUE)
    row = (begin + tokens).to(tl.int64)
    vectors = tl.load(
        query + row[:, None] * query_stride + heads[:, None] * query_head_stride + key_dims[None, :],
        mask=there[:, None] & (key_dims < KEY)[None, :],
        other=0.0,
    )
    sums, best, total = _walk(
        vectors,
        tl.where(there, before + tokens, -1),
        first,
        last,
        tables + sequence.to(tl.int64) * table_stride,
        keys + head * KEY,
        values + head * VALUE,
        key_stride,
        value_stride,
        key_scales + head if SCALED else key_scales,
        value_scales + head if SCALED else value_scales,
        scale_stride,
        scale,
        cap,
        window,
        PAGE,
        KEY,
        VALUE,
        PAD_KEY,
        PAD_VALUE,
        ROWS,
        BLOCK,
        CAPPED,
        WINDOWED,
        SCALED,
        PRECISION,
    )
    place = row * out_stride + heads * out_head_stride
    if SPLITS:
        part = tl.program_id(0)
        level = levels + place // PAD_VALUE * 2 + part * 2
        _keep_part(sums, best, total, out + place + part * PAD_VALUE, level, there, PAD_VALUE)
        return
    result = _whole(sums, best, total, sinks, heads, there, SINKS)
    kept = there[:, None] & (value_dims < VALUE)[None, :]
    tl.store(out + place[:, None] + value_dims[None, :], result.to(out.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["contexts"])
def join(
    partial,
    levels,
    out,
    sinks,
    contexts,
    out_stride,
    out_head_stride,
    window,
    HEADS: tl.constexpr,
    VALUE: tl.constexpr,
    PAD_VALUE: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Grid (sequences, heads): the parts of a row as one. A context of 0 gives zeros."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    context = tl.load(contexts + sequence)
    first, size = _part(context, window, SPLITS, LEAST, WINDOWED)
    splits, dims = tl.arange(0, SPLITS), tl.arange(0, PAD_VALUE)
    there = first + splits * size < context
    place = (sequence.to(tl.int64) * HEADS + head) * SPLITS + splits
    best = tl.load(levels + place * 2, mask=there, other=float("-inf"))
    total = tl.load(levels + place * 2 + 1, mask=there, other=0.0)
    level = tl.max(best, 0)
    sink = float("-inf")
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        level = tl.maximum(level, sink)
    level = tl.where(level == float("-inf"), 0.0, level)
    shrink = tl.exp2(best - level)
    whole = tl.sum(total * shrink, 0)
    if SINKS:
        whole = whole + tl.exp2(sink - level)
    parts = tl.load(partial + place[:, None] * PAD_VALUE + dims[None, :], mask=there[:, None], other=0.0)
    result = tl.sum(parts * shrink[:, None], 0) / tl.where(whole > 0, whole, 1.0)
    tl.store(
        out + sequence.to(tl.int64) * out_stride + head * out_head_stride + dims,
        result.to(out.dtype.element_ty),
        mask=dims < VALUE,
    )


@triton.jit
def put(x, pages, scales, place, here, HEADS: tl.constexpr, DIM: tl.constexpr, SCALED: tl.constexpr):
    """Heads x [heads, dims] of a row into its place; here: the pairs (head, dim) that there are."""
    head, at = tl.arange(0, x.shape[0]), tl.arange(0, x.shape[1])
    if SCALED:
        scale = tl.maximum(tl.max(tl.abs(tl.where(here, x.to(tl.float32), 0.0)), 1), 1e-12) / 448.0
        tl.store(scales + place * HEADS + head, scale, mask=head < HEADS)
        x = x.to(tl.float32) / scale[:, None]
    target = pages + place * HEADS * DIM + head[:, None] * DIM + at[None, :]
    tl.store(target, x.to(pages.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["places"])
def store(
    key,
    value,
    keys,
    values,
    key_scales,
    value_scales,
    places,
    key_row,
    key_head,
    value_row,
    value_head,
    HEADS: tl.constexpr,
    PAD_HEADS: tl.constexpr,
    KEY: tl.constexpr,
    PAD_KEY: tl.constexpr,
    VALUE: tl.constexpr,
    PAD_VALUE: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Grid (rows,): the keys and values of a row's heads into its place; none where the place is negative."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(places + row).to(tl.int64)
    if place < 0:
        return
    head = tl.arange(0, PAD_HEADS)
    at = tl.arange(0, PAD_KEY)
    here = (head < HEADS)[:, None] & (at < KEY)[None, :]
    vectors = tl.load(key + row * key_row + head[:, None] * key_head + at[None, :], mask=here)
    put(vectors, keys, key_scales, place, here, HEADS, KEY, SCALED)
    at = tl.arange(0, PAD_VALUE)
    here = (head < HEADS)[:, None] & (at < VALUE)[None, :]
    vectors = tl.load(value + row * value_row + head[:, None] * value_head + at[None, :], mask=here)
    put(vectors, values, value_scales, place, here, HEADS, VALUE, SCALED)
