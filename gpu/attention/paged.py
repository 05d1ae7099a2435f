"""Attention on a GPU: keys and values go into the pages, then chunks and decodes each have their own kernel.

What all layers of a step share lies on the device as one upload: first row and context of each sequence,
block tables, and the place of each row. A negative place is written nowhere and a context of 0 sees nothing,
which is what pads a step that a CUDA graph replays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gpu.attention.base import Batch, Spec
from gpu.cuda.staging import Staging
from gpu.kv_pool import KvPool, LayerPages


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Sequences of a step on the device: n of them, with R rows.

    starts: int32 [n + 1], first row of each, and R. contexts: int32 [n], lengths after the step. tables:
    int32 [n, P] page numbers. longest: rows of a sequence at most. reach: no context is longer.
    host: query_lens, contexts and tables as the host knows them; None where only the device does.
    """

    starts: Tensor
    contexts: Tensor
    tables: Tensor
    longest: int
    reach: int
    host: Batch | None = None


Attend = Callable[[LayerPages, Tensor, Spec, Tensor | None], Tensor]
"""A layer's attention: (pages, query [R, heads, key_dim], spec, sinks) -> [R, heads, value_dim]."""


class PagedKernel(Protocol):
    """One way to attend over pages. capturable: a CUDA graph may replay it with other numbers."""

    name: str
    capturable: bool

    def prepare(self, rows: Rows) -> Attend:
        """Compute once what all layers of a step share."""
        ...


class PagedAttention:
    """`gpu.attention.Backend` of two kernels, one for chunks and one for decodes. store: writes the step's
    keys and values, (pages, places, key, value)."""

    def __init__(
        self,
        pool: KvPool,
        prefill: PagedKernel,
        decode: PagedKernel,
        store: Callable[[LayerPages, Tensor, Tensor, Tensor], None],
    ) -> None:
        self.pool, self.prefill, self.decode, self.store = pool, prefill, decode, store
        self.staging = Staging(pool.device)

    @property
    def name(self) -> str:
        """As the option has it."""
        names = [self.prefill.name, self.decode.name]
        return ",".join(dict.fromkeys(names))

    def prepare(self, batch: Batch) -> PagedStep:
        """See `Backend.prepare`."""
        starts = np.concatenate([[0], np.cumsum(batch.query_lens)]).astype(np.int32)
        arrays = starts, batch.contexts.astype(np.int32), batch.block_tables, batch.places.astype(np.int32)
        on_device = self.staging.upload(*arrays)
        chunks = len(batch.query_lens) - batch.decodes
        parts = [slice(0, chunks), slice(chunks, len(batch.query_lens))]
        prefill, decode = (_rows(batch, part, starts, on_device) for part in parts)
        return PagedStep(
            self,
            on_device[3],
            int(starts[chunks]),
            self.prefill.prepare(prefill) if prefill is not None else None,
            self.decode.prepare(decode) if decode is not None else None,
        )

    def decoding(self, rows: Rows, places: Tensor) -> PagedStep:
        """A step of nothing but decodes, which lies on the device already. places: int32 [n]."""
        return PagedStep(self, places, 0, None, self.decode.prepare(rows))


def _rows(batch: Batch, part: slice, starts: npt.NDArray[np.int32], on_device: list[Tensor]) -> Rows | None:
    if part.start == part.stop:
        return None
    rows, contexts, tables, _ = on_device
    begin = int(starts[part.start])
    own = rows[part.start : part.stop + 1]
    host = Batch(
        query_lens=batch.query_lens[part],
        contexts=batch.contexts[part],
        block_tables=batch.block_tables[part],
        positions=batch.positions[begin : starts[part.stop]],
        places=batch.places[begin : starts[part.stop]],
        decodes=batch.decodes if part.start else 0,
    )
    return Rows(
        starts=own if begin == 0 else own - begin,
        contexts=contexts[part],
        tables=tables[part],
        longest=int(host.query_lens.max()),
        reach=int(host.contexts.max()),
        host=host,
    )


class PagedStep:
    """`gpu.attention.StepAttention` of two kernels. places: int32 [T]."""

    def __init__(
        self,
        backend: PagedAttention,
        places: Tensor,
        first_decode: int,
        prefill: Attend | None,
        decode: Attend | None,
    ) -> None:
        """first_decode: row of the first decode."""
        self.pool, self.places = backend.pool, places
        self._store, self._first, self._prefill, self._decode = backend.store, first_decode, prefill, decode

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: Spec, sinks: Tensor | None = None
    ) -> Tensor:
        """See `StepAttention.attend`."""
        self._store(self.pool.layers[layer], self.places, key, value)
        return self.attend_stored(layer, query, spec, sinks)

    def attend_stored(self, layer: int, query: Tensor, spec: Spec, sinks: Tensor | None = None) -> Tensor:
        """Attention of rows whose keys and values are in the pages already. query: [T, heads, key_dim]."""
        pages, first = self.pool.layers[layer], self._first
        if self._prefill is None:
            assert self._decode is not None
            return self._decode(pages, query, spec, sinks)
        if self._decode is None:
            return self._prefill(pages, query, spec, sinks)
        out = query.new_empty(*query.shape[:2], pages.values.shape[3])
        out[:first] = self._prefill(pages, query[:first], spec, sinks)
        out[first:] = self._decode(pages, query[first:], spec, sinks)
        return out
