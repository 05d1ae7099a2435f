"""CUDA graphs of the decode step: what the host launches hundreds of times, replayed in one call.

A graph is recorded for each size of a ladder; a step of n sequences replays the smallest that has as many
rows. All read the same buffers, which a step fills first. Rows past the n-th have the place -1 and the
context 0: they are written nowhere, see nothing, and nobody reads what they give.

    one buffer, one copy, [size] each:  slots int64 | positions int64 | contexts int32 | places int32

Sampling is not part of the graph: it depends on what each request asks for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpu.attention.base import Batch
from gpu.attention.paged import PagedAttention, Rows
from gpu.models.base import Inputs, Model
from protocols.errors import StartError

_ROW_BYTES = 8 + 8 + 4 + 4


class Recorder(Protocol):
    """Makes work repeatable."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work`, then return what does the same again, on the same memory."""
        ...


class CudaRecorder:
    """Records graphs that share one pool of memory, which works because no two of them run at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder.record`."""
        aside, current = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            work()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


@dataclasses.dataclass(frozen=True)
class _Buffers:
    """What graphs of one size read: slots, positions int64 [size], contexts, places int32 [size]."""

    slots: Tensor
    positions: Tensor
    contexts: Tensor
    places: Tensor


def packed(slots: np.ndarray, batch: Batch, positions: np.ndarray, size: int) -> np.ndarray:
    """The buffer of a step of n sequences for a graph of `size` rows: uint8 [size * 24]."""
    count = len(slots)
    buffer = np.zeros(size * _ROW_BYTES, np.uint8)
    long, short = buffer[: size * 16].view(np.int64), buffer[size * 16 :].view(np.int32)
    long[:count], long[size : size + count] = slots, positions
    short[:count] = batch.contexts
    short[size:] = -1
    short[size : size + count] = batch.places
    return buffer


class DecodeGraphs:
    """The graphs of one executor. Shut until `record` has run, and after `release`."""

    def __init__(
        self, backend: PagedAttention, last: Tensor, width: int, vocab_size: int, sizes: Sequence[int]
    ) -> None:
        """last: int64 [slots], the token that each slot sampled last. width: pages of a sequence at most."""
        assert backend.decode.capturable
        self._backend, self._last, self.sizes = backend, last, tuple(sorted(sizes))
        largest, device = self.sizes[-1], backend.pool.device
        self._packed = torch.from_numpy(np.zeros(largest * _ROW_BYTES, np.uint8)).to(device)
        self._tables = torch.zeros(largest, width, dtype=torch.int32, device=device)
        self._starts = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self._logits = torch.zeros(largest, vocab_size, dtype=torch.float32, device=device)
        self._replays: dict[int, Callable[[], None]] = {}

    def record(self, model: Model, recorder: Recorder, progress: Callable[[str], None]) -> None:
        """Record every size of `model`, the largest first, since the others fit into its memory. To be called
        again when the model is exchanged, or anything has moved in memory."""
        self.release()
        for done, size in enumerate(reversed(self.sizes)):
            progress(f"recording CUDA graphs: {done} of {len(self.sizes)}")
            self._packed.copy_(torch.from_numpy(self._padding(size)))
            try:
                self._replays[size] = recorder.record(self._work(model, size))
            except torch.OutOfMemoryError as error:
                raise StartError(
                    "there is no memory for CUDA graphs: use --cuda-graphs off, or less --memory-fraction."
                ) from error

    def release(self) -> None:
        """Give up all graphs, and the memory that they work in."""
        self._replays.clear()

    def run(self, slots: np.ndarray, batch: Batch, positions: np.ndarray) -> Tensor | None:
        """Logits float32 [n, vocab] of a step of decodes, valid until the next; None where no graph fits."""
        count = len(slots)
        size = next((size for size in self.sizes if size >= count), 0)
        if size not in self._replays:
            return None
        buffer = packed(slots, batch, positions, size)
        numbers, tables = self._backend.staging.upload(buffer, batch.block_tables)
        self._packed[: len(numbers)].copy_(numbers)
        self._tables[:count, : tables.shape[1]].copy_(tables)
        self._replays[size]()
        return self._logits[:count]

    def _padding(self, size: int) -> np.ndarray:
        """A buffer of nothing but padded rows."""
        nobody = np.zeros(0, np.int64)
        empty = Batch(nobody, nobody, np.zeros((0, 0), np.int32), nobody, nobody, 0)
        buffer = np.zeros(len(self._packed), np.uint8)
        buffer[: size * _ROW_BYTES] = packed(nobody, empty, nobody, size)
        return buffer

    def _work(self, model: Model, size: int) -> Callable[[], None]:
        buffers = self._buffers(size)
        rows = Rows(
            starts=self._starts[: size + 1],
            contexts=buffers.contexts,
            tables=self._tables[:size],
            longest=1,
            reach=self._tables.shape[1] * self._backend.pool.page_size,
        )

        def work() -> None:
            attention = self._backend.decoding(rows, buffers.places)
            tokens = self._last.index_select(0, buffers.slots)
            self._logits[:size].copy_(model.forward(Inputs(tokens, buffers.positions, attention)))

        return work

    def _buffers(self, size: int) -> _Buffers:
        long = self._packed[: size * 16].view(torch.int64)
        short = self._packed[size * 16 : size * _ROW_BYTES].view(torch.int32)
        return _Buffers(long[:size], long[size:], short[:size], short[size:])
