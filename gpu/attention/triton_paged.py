"""Attention by our own Triton kernels: any head size, grouping, page size, window, cap and sinks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
from torch import Tensor

from gpu.attention.base import Spec
from gpu.attention.paged import Attend, Rows
from gpu.cuda import attention_kernels as kernels
from gpu.kv_pool import KvPool, LayerPages

_LEAST_PART = 256
"""Keys below which the context of a decode is not parted any further."""

_PROGRAMS = 128
"""Programs that one decode may become; about as many as a GPU has multiprocessors."""


_MOST_PARTS = 32

_FEW_ROWS, _MANY_ROWS = 32, 128


class TritonKernel:
    """`gpu.attention.paged.PagedKernel` for chunks and decodes alike."""

    name = "triton"
    capturable = True

    def __init__(self, pool: KvPool, programs: int | None = None, least: int = _LEAST_PART) -> None:
        """programs: that one decode may become. least: keys of each of them, but for the last."""
        self.programs, self.least = _PROGRAMS if programs is None else programs, least
        self._page, self._wide = pool.page_size, pool.dtype == torch.float32

    def prepare(self, rows: Rows) -> Attend:
        """See `PagedKernel.prepare`."""
        return _Decode(self, rows) if rows.longest == 1 else _Prefill(self, rows)

    def launch(
        self,
        programs: int,
        rows: Rows,
        pages: LayerPages,
        query: Tensor,
        out: Tensor,
        levels: Tensor | None,
        spec: Spec,
        sinks: Tensor | None,
        shape: Mapping[str, int],
    ) -> None:
        """`kernels.attend` with so many programs for each head of each sequence. shape: what is compiled in
        besides what pages and `spec` tell."""
        key, value = pages.keys.shape[3], pages.values.shape[3]
        widest, wide = max(key, value), self._wide
        fixed: dict[str, object] = {
            "GROUP": query.shape[1] // pages.keys.shape[2],
            "PAGE": self._page,
            "KEY": key,
            "VALUE": value,
            "PAD_KEY": _padded(key),
            "PAD_VALUE": _padded(value),
            "ROWS": _padded(shape["TOKENS"] * query.shape[1] // pages.keys.shape[2]),
            "BLOCK": 32 if wide or widest > 128 else 64,
            "CAPPED": spec.softcap > 0,
            "WINDOWED": spec.window > 0,
            "SCALED": pages.key_scales is not None,
            "PRECISION": "ieee" if wide else "tf32",
            "num_warps": 4 if widest <= 128 else 8,
            "num_stages": 1 if wide else 3,
        }
        kernels.attend[programs, pages.keys.shape[2], len(rows.contexts)](
            query,
            out,
            levels,
            pages.keys,
            pages.values,
            pages.key_scales,
            pages.value_scales,
            sinks,
            rows.starts,
            rows.contexts,
            rows.tables,
            query.stride(0),
            query.stride(1),
            out.stride(0),
            out.stride(1),
            pages.key_rows.stride(0),
            pages.value_rows.stride(0),
            pages.keys.shape[2],
            rows.tables.stride(0),
            spec.scale,
            spec.softcap,
            spec.window,
            **{**fixed, **shape},
        )

    def tile(self, wanted: int, widest: int) -> int:
        """Rows of a tile of prefill: few where `wanted` are, so that not every length has its own kernel."""
        if wanted <= _FEW_ROWS:
            return _FEW_ROWS
        return 64 if self._wide or widest > 128 else _MANY_ROWS


class _Prefill:
    def __init__(self, kernel: TritonKernel, rows: Rows) -> None:
        self._kernel, self._rows = kernel, rows

    def __call__(self, pages: LayerPages, query: Tensor, spec: Spec, sinks: Tensor | None) -> Tensor:
        query = _flat(query)
        kv_heads, width = pages.values.shape[2:]
        out = query.new_empty(*query.shape[:2], width)
        group = query.shape[1] // kv_heads
        tile = self._kernel.tile(self._rows.longest * group, max(query.shape[2], width))
        tokens = max(1, tile // group)
        tiles = triton.cdiv(self._rows.longest, tokens)
        shape = {"TOKENS": tokens, "SPLITS": 0, "LEAST": 0, "SINKS": sinks is not None}
        warps = {"num_warps": 8} if tile == _MANY_ROWS else {}
        self._kernel.launch(tiles, self._rows, pages, query, out, None, spec, sinks, shape | warps)
        return out


class _Decode:
    def __init__(self, kernel: TritonKernel, rows: Rows) -> None:
        self._kernel, self._rows = kernel, rows

    def __call__(self, pages: LayerPages, query: Tensor, spec: Spec, sinks: Tensor | None) -> Tensor:
        query = _flat(query)
        count, heads = query.shape[:2]
        kv_heads, width = pages.values.shape[2:]
        splits = triton.next_power_of_2(min(_MOST_PARTS, max(1, self._kernel.programs // kv_heads)))
        parting = {"SPLITS": splits, "LEAST": self._kernel.least}
        padded = _padded(width)
        partial = query.new_empty(count, heads, splits * padded, dtype=torch.float32)
        levels = query.new_empty(count, heads, splits * 2, dtype=torch.float32)
        shape = {"TOKENS": 1, "SINKS": False, **parting}
        self._kernel.launch(splits, self._rows, pages, query, partial, levels, spec, None, shape)
        out = query.new_empty(count, heads, width)
        kernels.join[count, heads](
            partial,
            levels,
            out,
            sinks,
            self._rows.contexts,
            out.stride(0),
            out.stride(1),
            spec.window,
            HEADS=heads,
            VALUE=width,
            PAD_VALUE=padded,
            SINKS=sinks is not None,
            WINDOWED=spec.window > 0,
            **parting,
        )
        return out


def store(pages: LayerPages, places: Tensor, key: Tensor, value: Tensor) -> None:
    """Write keys and values [T, kv_heads, dim] into their places, int32 [T], if not negative."""
    key, value = _flat(key), _flat(value)
    heads = key.shape[1]
    kernels.store[(len(places),)](
        key,
        value,
        pages.keys,
        pages.values,
        pages.key_scales,
        pages.value_scales,
        places,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        HEADS=heads,
        PAD_HEADS=triton.next_power_of_2(heads),
        KEY=key.shape[2],
        PAD_KEY=triton.next_power_of_2(key.shape[2]),
        VALUE=value.shape[2],
        PAD_VALUE=triton.next_power_of_2(value.shape[2]),
        SCALED=pages.key_scales is not None,
    )


def _flat(x: Tensor) -> Tensor:
    """The numbers of a head side by side; rows and heads may lie apart."""
    return x if x.stride(2) == 1 else x.contiguous()


def _padded(size: int) -> int:
    """As wide as a matrix product wants it."""
    return max(16, triton.next_power_of_2(size))
