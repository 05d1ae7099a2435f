"""Attention by the CPU's kernels: straight over the pages, nothing gathered, whatever the mixture of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.attention.base import Batch, Spec
from gpu.cpu.library import BatchStruct, HeadsStruct, Kernels, MannerStruct, PagesStruct, address
from gpu.kv_pool import KvPool


class CpuAttention:
    """`gpu.attention.Backend` of the kernels, for float32 and bfloat16 pools."""

    def __init__(self, pool: KvPool, kernels: Kernels) -> None:
        self.pool, self.kernels = pool, kernels

    def prepare(self, batch: Batch) -> CpuStep:
        """See `Backend.prepare`."""
        return CpuStep(self.pool, self.kernels, batch)


class CpuStep:
    """`gpu.attention.StepAttention` of the kernels. struct: the batch as the kernels want it."""

    def __init__(self, pool: KvPool, kernels: Kernels, batch: Batch) -> None:
        self.pool, self._kernels = pool, kernels
        self._tables = (
            batch.block_tables if batch.block_tables.flags.c_contiguous else batch.block_tables.copy()
        )
        self._batch = batch
        self.struct = BatchStruct(
            rows=len(batch.positions),
            sequences=len(batch.query_lens),
            query_lens=batch.query_lens.ctypes.data,
            contexts=batch.contexts.ctypes.data,
            positions=batch.positions.ctypes.data,
            places=batch.places.ctypes.data,
            tables=self._tables.ctypes.data,
            table_width=self._tables.shape[1],
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: Spec, sinks: Tensor | None = None
    ) -> Tensor:
        """See `StepAttention.attend`."""
        pages, heads = self.pool.layers[layer], query.shape[1]
        out = query.new_empty(query.shape[0], heads, value.shape[2])
        extra = None if sinks is None else sinks.float().contiguous()
        self._kernels.attend(
            HeadsStruct(heads, key.shape[1], key.shape[2], value.shape[2], self.pool.page_size),
            MannerStruct(spec.scale, spec.softcap, spec.window, address(extra)),
            PagesStruct(pages.keys.data_ptr(), pages.values.data_ptr()),
            self.struct,
            (query.contiguous(), key.contiguous(), value.contiguous()),
            out,
        )
        return out


def supports(pool: KvPool) -> bool:
    """Whether the kernels can attend over this pool."""
    return pool.device.type == "cpu" and pool.dtype in (torch.float32, torch.bfloat16)
