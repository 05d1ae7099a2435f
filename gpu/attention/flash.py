"""Attention by FlashAttention, whichever of its builds is installed.

FlashAttention-3 reads pages of any size, FlashAttention-2 those of a multiple of 256 tokens. Where the pages
are smaller, the context of each chunk is gathered first, which costs little beside the prefill itself; a
decode, which does nothing but read, is left to another kernel then.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gpu.attention.base import Spec
from gpu.attention.paged import Attend, PagedKernel, Rows
from gpu.cuda.staging import Staging
from gpu.kv_pool import KvPool, LayerPages
from protocols.errors import StartError

_LARGE_PAGE = 256

MOST_GATHERED = 1 << 16
"""Tokens of the contexts of a step that are gathered at most: more take time, and memory that nobody has set
aside, as many short chunks behind a long prefix do."""


class Varlen(Protocol):
    """Causal attention of ragged queries [R, heads, dim]: over pages [pages, page, kv_heads, dim] by
    `rows.tables`, or, with `ends`, int32 [n + 1], over ragged keys [sum of contexts, kv_heads, dim]."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, rows: Rows, ends: Tensor | None, spec: Spec
    ) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class Library:
    """One build. pages: which sizes of pages it reads, as a multiple; 0 for none. caps: whether it knows
    `softcap`."""

    name: str
    pages: int
    caps: bool
    call: Varlen

    def reads(self, page_size: int) -> bool:
        """Whether it attends over pages of this size."""
        return self.pages > 0 and page_size % self.pages == 0


def _window(spec: Spec) -> tuple[int, int]:
    return (spec.window - 1 if spec.window else -1, 0)


def third(module: Any) -> Library:
    """FlashAttention-3: the package that installs `flash_attn_interface`."""

    def call(
        query: Tensor, key: Tensor, value: Tensor, rows: Rows, ends: Tensor | None, spec: Spec
    ) -> Tensor:
        assert ends is None
        return module.flash_attn_with_kvcache(
            query,
            key,
            value,
            cache_seqlens=rows.contexts,
            page_table=rows.tables,
            cu_seqlens_q=rows.starts,
            max_seqlen_q=rows.longest,
            softmax_scale=spec.scale,
            causal=True,
            window_size=_window(spec),
            softcap=spec.softcap,
        )

    return Library("FlashAttention-3", 1, True, call)


def second(module: Any) -> Library:
    """FlashAttention-2: the package `flash-attn`."""

    def call(
        query: Tensor, key: Tensor, value: Tensor, rows: Rows, ends: Tensor | None, spec: Spec
    ) -> Tensor:
        return module.flash_attn_varlen_func(
            query,
            key,
            value,
            rows.starts,
            _ends(rows.contexts) if ends is None else ends,
            rows.longest,
            rows.reach,
            softmax_scale=spec.scale,
            causal=True,
            window_size=_window(spec),
            softcap=spec.softcap,
            block_table=rows.tables if ends is None else None,
        )

    return Library("FlashAttention-2", _LARGE_PAGE, True, call)


def of_torch(varlen_attn: Any) -> Library:
    """The one within torch. Its pages need FlashAttention-3, which is called directly where it is there."""
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def call(
        query: Tensor, key: Tensor, value: Tensor, rows: Rows, ends: Tensor | None, spec: Spec
    ) -> Tensor:
        assert ends is not None
        shared = grouped if query.shape[1] != key.shape[1] else {}
        return varlen_attn(
            query,
            key,
            value,
            rows.starts,
            ends,
            rows.longest,
            rows.reach,
            scale=spec.scale,
            window_size=_window(spec),
            **shared,
        )

    return Library("torch's FlashAttention-2", 0, False, call)


def find() -> Library | None:
    """The best one that is installed for this GPU."""
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    if hopper and importlib.util.find_spec("flash_attn_interface") is not None:
        return third(importlib.import_module("flash_attn_interface"))
    if importlib.util.find_spec("flash_attn") is not None:
        return second(importlib.import_module("flash_attn"))
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return of_torch(varlen_attn) if "window_size" in inspect.signature(varlen_attn).parameters else None


def misfit(pool: KvPool) -> str:
    """Why FlashAttention cannot serve this pool; nothing where it can."""
    if pool.dtype not in (torch.float16, torch.bfloat16):
        return f"FlashAttention computes in 16 bits, not in {str(pool.dtype).removeprefix('torch.')}"
    if pool.stored is not pool.dtype:
        return "FlashAttention does not read keys and values that have scales for each token"
    for shape in pool.shapes:
        if shape.key_dim != shape.value_dim or shape.key_dim > 256 or shape.key_dim % 8:
            return f"FlashAttention has no heads of {shape.key_dim} and {shape.value_dim} numbers"
    return ""


class FlashKernel:
    """`PagedKernel` of a library: for chunks, and for decodes where it reads the pages."""

    name = "flash"

    def __init__(self, pool: KvPool, library: Library, otherwise: PagedKernel | None = None) -> None:
        """otherwise: attends where too much would have to be gathered."""
        self._pool, self.library, self._otherwise = pool, library, otherwise
        self.capturable = library.reads(pool.page_size)
        self._staging = Staging(pool.device)

    def prepare(self, rows: Rows) -> Attend:
        """See `PagedKernel.prepare`."""
        if not self.capturable and self._otherwise is not None and _length(rows) > MOST_GATHERED:
            return self._otherwise.prepare(rows)
        gathered = None if self.capturable else self._gather(rows)

        def attend(pages: LayerPages, query: Tensor, spec: Spec, sinks: Tensor | None) -> Tensor:
            if sinks is not None or (spec.softcap and not self.library.caps):
                raise StartError(f"{self.library.name} cannot do the attention of this model: use triton.")
            query = query.contiguous()
            if gathered is None:
                return self.library.call(query, pages.keys, pages.values, rows, None, spec)
            places, ends = gathered
            key, value = (
                rows_of.index_select(0, places).view(len(places), *of.shape[2:])
                for rows_of, of in ((pages.key_rows, pages.keys), (pages.value_rows, pages.values))
            )
            return self.library.call(query, key, value, rows, ends, spec)

        return attend

    def _gather(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Places of all positions of all sequences, int32 [sum of contexts], and where each begins."""
        assert rows.host is not None
        contexts, size = rows.host.contexts, self._pool.page_size
        ends = np.concatenate([[0], np.cumsum(contexts)])
        sequences = np.repeat(np.arange(len(contexts)), contexts)
        positions = np.arange(ends[-1]) - ends[sequences]
        places = rows.host.block_tables[sequences, positions // size] * size + positions % size
        uploaded = self._staging.upload(places.astype(np.int32), ends.astype(np.int32))
        return uploaded[0], uploaded[1]


def _length(rows: Rows) -> int:
    """Of all contexts together."""
    assert rows.host is not None
    return int(rows.host.contexts.sum())


def _ends(lengths: Tensor) -> Tensor:
    """[n] -> [n + 1], 0 and the sums up to each."""
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
