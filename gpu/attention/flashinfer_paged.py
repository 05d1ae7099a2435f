"""Attention by FlashInfer, where it is installed: its plans are made on the host, once a step."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu.attention.base import Spec
from gpu.attention.paged import Attend, Rows
from gpu.kv_pool import KvPool, LayerPages
from protocols.errors import StartError

_WORKSPACE = 256 << 20


class FlashInferKernel:
    """`gpu.attention.paged.PagedKernel` of FlashInfer's wrappers for paged KV caches. A step is planned for
    each kind of attention that its layers have, when the first of them comes; a wrapper holds one plan, so
    each kind has its own."""

    name = "flashinfer"
    capturable = False

    def __init__(self, pool: KvPool, library: Any = None) -> None:
        """library: the module, imported where it is not given."""
        self._pool = pool
        self._library = importlib.import_module("flashinfer") if library is None else library
        self._wrappers: dict[tuple[object, ...], Any] = {}

    def prepare(self, rows: Rows) -> Attend:
        """See `PagedKernel.prepare`."""
        assert rows.host is not None
        planned: dict[tuple[object, ...], Any] = {}

        def attend(pages: LayerPages, query: Tensor, spec: Spec, sinks: Tensor | None) -> Tensor:
            if sinks is not None:
                raise StartError("FlashInfer has no attention sinks here: use --attention-backend triton.")
            kind = (spec, query.shape[1], pages.keys.shape[2:], rows.longest == 1)
            if kind not in planned:
                planned[kind] = self._plan(kind, rows, pages, query, spec)
            return planned[kind].run(query.contiguous(), (pages.keys, pages.values))

        return attend

    def _wrapper(self, kind: tuple[object, ...], single: bool) -> Any:
        if kind not in self._wrappers:
            workspace = torch.empty(_WORKSPACE, dtype=torch.uint8, device=self._pool.device)
            name = "BatchDecodeWithPagedKVCacheWrapper" if single else "BatchPrefillWithPagedKVCacheWrapper"
            self._wrappers[kind] = getattr(self._library, name)(workspace, "NHD")
        return self._wrappers[kind]

    def _plan(
        self, kind: tuple[object, ...], rows: Rows, pages: LayerPages, query: Tensor, spec: Spec
    ) -> Any:
        single = rows.longest == 1
        wrapper = self._wrapper(kind, single)
        assert rows.host is not None
        page, contexts = self._pool.page_size, rows.host.contexts
        counts = -(-contexts // page)
        used = np.arange(rows.host.block_tables.shape[1]) < counts[:, None]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        numbers = rows.host.block_tables[used].astype(np.int32)
        last = ((contexts - 1) % page + 1).astype(np.int32)
        table = [torch.from_numpy(each) for each in (starts, numbers, last)]
        kv_heads, dim = pages.keys.shape[2:]
        shape: dict[str, Any] = {
            "sm_scale": spec.scale,
            "window_left": spec.window - 1 if spec.window else -1,
            "logits_soft_cap": spec.softcap or None,
            "q_data_type": query.dtype,
        }
        if single:
            wrapper.plan(*table, query.shape[1], kv_heads, dim, page, **shape)
        else:
            begins = np.concatenate([[0], np.cumsum(rows.host.query_lens)]).astype(np.int32)
            wrapper.plan(
                torch.from_numpy(begins), *table, query.shape[1], kv_heads, dim, page, causal=True, **shape
            )
        return wrapper
