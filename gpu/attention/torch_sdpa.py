"""Attention in plain torch, on any device: gather the context, then scaled_dot_product_attention.

Decodes are vectorised over sequences of similar length: one gather of keys, one of values and one
SDPA call for each such group, with the query heads of a KV head as the query rows. A chunk is one SDPA call
for each sequence; at the start of a sequence it needs no gather.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gpu.attention.base import Batch, Spec
from gpu.cuda.staging import to_device
from gpu.kv_pool import KvPool, in_eight_bits

_SPLIT_ABOVE = 4096
"""Padded places of a decode group above which sequences shorter than half its longest get their own."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """Sequences that attend in one call: `rows` of the step, [count * query_len] of them.

    places: int32 [count * length], where the keys lie, the pool's zero place as padding; None when
    the keys are the rows' own. mask: [count, 1, query_len | 1, length], added to the scores, or None.
    causal: instead of a mask, the rows see the places up to their own.
    """

    rows: slice | Tensor
    count: int
    length: int
    places: Tensor | None
    mask: Tensor | None
    causal: bool


class TorchAttention:
    """`gpu.attention.Backend` of torch operations."""

    def __init__(self, pool: KvPool) -> None:
        self.pool = pool

    def prepare(self, batch: Batch) -> TorchStep:
        """See `Backend.prepare`."""
        return TorchStep(self.pool, batch)


class TorchStep:
    """`gpu.attention.StepAttention` of torch operations."""

    def __init__(self, pool: KvPool, batch: Batch) -> None:
        self._pool, self._batch = pool, batch
        self._places = to_device(batch.places, pool.device)
        self._groups: dict[int, list[_Group]] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: Spec, sinks: Tensor | None = None
    ) -> Tensor:
        """See `StepAttention.attend`."""
        pages = self._pool.layers[layer]
        _store(pages.key_rows, pages.key_scales, self._places, key)
        _store(pages.value_rows, pages.value_scales, self._places, value)
        groups = self._groups.get(spec.window)
        if groups is None:
            groups = self._groups[spec.window] = self._plan(spec.window)
        if len(groups) == 1:
            return self._run(groups[0], layer, query, key, value, spec, sinks)
        out = query.new_empty(*query.shape[:2], value.shape[2])
        for group in groups:
            rows = group.rows
            out[rows] = self._run(group, layer, query[rows], key[rows], value[rows], spec, sinks)
        return out

    def _run(
        self,
        group: _Group,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spec: Spec,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attention of one group, [rows, heads, dim] in and out."""
        if group.places is not None:
            pages, shape = self._pool.layers[layer], (group.count, group.length, key.shape[1], -1)
            key = _load(pages.key_rows, pages.key_scales, group.places, query.dtype).view(shape)
            value = _load(pages.value_rows, pages.value_scales, group.places, query.dtype).view(shape)
        else:
            key, value = key[None], value[None]
        if group.count == query.shape[0]:
            return _attend_one(query, key, value, group.mask, spec, sinks)
        return _attend_many(query, key, value, group, spec, sinks)

    def _plan(self, window: int) -> list[_Group]:
        batch = self._batch
        chunks = len(batch.query_lens) - batch.decodes
        starts = np.cumsum(batch.query_lens) - batch.query_lens
        plan = [self._chunk(i, int(starts[i]), window) for i in range(chunks)]
        first = len(batch.places) - batch.decodes
        decoding = _similar(_clip(batch.contexts[chunks:], window))
        return plan + [self._decodes(members, chunks, first, window) for members in decoding]

    def _chunk(self, sequence: int, row: int, window: int) -> _Group:
        """The rows of one chunk; only what their windows can see is gathered."""
        context, length = int(self._batch.contexts[sequence]), int(self._batch.query_lens[sequence])
        start = context - length
        first = max(0, start - window + 1) if window else 0
        causal = start == 0 and not 0 < window < context
        # What has 8 bits is read as it is kept from the first time on.
        one, gathers = np.array([sequence]), start > 0 or self._pool.stored is not self._pool.dtype
        return _Group(
            rows=slice(row, row + length),
            count=1,
            length=context - first,
            places=self._gather(one, np.array([first]), context - first) if gathers else None,
            mask=None if causal else self._mask(_chunk_mask(start, first, context, window)),
            causal=causal,
        )

    def _decodes(self, members: npt.NDArray[np.intp] | None, chunks: int, row: int, window: int) -> _Group:
        """One row each of the sequences `members` (indices into the decodes, None = all)."""
        contexts = (
            self._batch.contexts[chunks:] if members is None else self._batch.contexts[chunks + members]
        )
        lengths = _clip(contexts, window)
        longest = int(lengths.max())
        sequences = np.arange(chunks, chunks + len(contexts)) if members is None else chunks + members
        even = bool((lengths == longest).all())
        mask = None if even else _additive(np.arange(longest) < lengths[:, None])[:, None, None]
        return _Group(
            rows=slice(row, None) if members is None else self._to_device(row + members),
            count=len(contexts),
            length=longest,
            places=self._gather(sequences, contexts - lengths, longest),
            mask=None if mask is None else self._mask(mask),
            causal=False,
        )

    def _gather(self, sequences: npt.NDArray[np.intp], firsts: npt.NDArray[np.int64], length: int) -> Tensor:
        """int32 [len(sequences) * length]: places of positions firsts[i] .. firsts[i] + length - 1."""
        size = self._pool.page_size
        positions = firsts[:, None] + np.arange(length)
        known = positions < self._batch.contexts[sequences, None]
        entries = np.minimum(positions // size, self._batch.block_tables.shape[1] - 1)
        pages = self._batch.block_tables[sequences[:, None], entries]
        places = np.where(known, pages * size + positions % size, self._pool.zero_place)
        return self._to_device(places.astype(np.int32).ravel())

    def _mask(self, mask: npt.NDArray[np.float32]) -> Tensor:
        return to_device(mask, self._pool.device).to(self._pool.dtype)

    def _to_device(self, values: npt.NDArray[np.integer]) -> Tensor:
        return to_device(values, self._pool.device)


def _store(rows: Tensor, scales: Tensor | None, places: Tensor, heads: Tensor) -> None:
    """Heads [T, heads, dim] into their places."""
    if scales is None:
        rows.index_copy_(0, places, heads.flatten(1))
        return
    numbers, found = in_eight_bits(heads)
    rows.view(torch.uint8).index_copy_(0, places, numbers.flatten(1).view(torch.uint8))
    scales.index_copy_(0, places, found)


def _load(rows: Tensor, scales: Tensor | None, places: Tensor, dtype: torch.dtype) -> Tensor:
    """What lies in places: [n, heads * dim], or, from 8 bits, [n, heads, dim]."""
    if scales is None:
        return rows.index_select(0, places)
    numbers = rows.view(torch.uint8).index_select(0, places).view(rows.dtype).float()
    found = scales.index_select(0, places)
    return (numbers.view(*found.shape, -1) * found[:, :, None]).to(dtype)


def _clip(contexts: npt.NDArray[np.int64], window: int) -> npt.NDArray[np.int64]:
    return np.minimum(contexts, window) if window else contexts


def _similar(lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[np.intp] | None]:
    """Split decodes so that padding never more than doubles a big gather; None stands for all in order."""
    if len(lengths) == 0:
        return []
    if len(lengths) * int(lengths.max()) <= max(_SPLIT_ABOVE, 2 * int(lengths.sum())):
        return [None]
    order = np.argsort(-lengths, kind="stable")
    groups: list[npt.NDArray[np.intp] | None] = []
    while len(order):
        count = int((lengths[order] * 2 >= lengths[order[0]]).sum())
        groups.append(order[:count])
        order = order[count:]
    return groups


def _additive(seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    return np.where(seen, np.float32(0), np.float32(-np.inf))


def _chunk_mask(start: int, first: int, context: int, window: int) -> npt.NDArray[np.float32]:
    """[1, 1, context - start, context - first], 0 where the row at start + i sees position first + j."""
    query, key = np.arange(start, context)[:, None], np.arange(first, context)
    seen = key <= query
    if window:
        seen &= key > query - window
    return _additive(seen)[None, None]


def _attend_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, spec: Spec, sinks: Tensor | None
) -> Tensor:
    """One query row for each of [count] sequences: the heads of a KV head become its query rows."""
    count, heads, dim = query.shape
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    packed = query.view(count, key.shape[1], -1, dim)
    if spec.softcap or sinks is not None:
        grouped = None if sinks is None else sinks.view(1, key.shape[1], -1, 1)
        out = _explicit(packed, key, value, mask, spec, grouped)
    else:
        out = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=spec.scale)
    return out.reshape(count, heads, -1)


def _attend_many(
    query: Tensor, key: Tensor, value: Tensor, group: _Group, spec: Spec, sinks: Tensor | None
) -> Tensor:
    """The rows of one sequence's chunk."""
    query, key, value = query.transpose(0, 1)[None], key.transpose(1, 2), value.transpose(1, 2)
    shared = query.shape[1] // key.shape[1]
    if spec.softcap or sinks is not None:
        mask = _causal_mask(query) if group.causal else group.mask
        key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
        out = _explicit(query, key, value, mask, spec, None if sinks is None else sinks.view(1, -1, 1, 1))
    else:
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=group.mask,
            is_causal=group.causal,
            scale=spec.scale,
            enable_gqa=shared > 1,
        )
    return out[0].transpose(0, 1)


def _causal_mask(query: Tensor) -> Tensor:
    size = query.shape[2]
    return torch.full((size, size), -torch.inf, dtype=query.dtype, device=query.device).triu_(1)


def _explicit(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, spec: Spec, sinks: Tensor | None
) -> Tensor:
    """What SDPA cannot: capped scores, and sinks [1, heads, ., 1]. All [., heads, rows, dim]."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * spec.scale
    if spec.softcap:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        scores = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1).to(scores.dtype)), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return torch.matmul(weights, value)
