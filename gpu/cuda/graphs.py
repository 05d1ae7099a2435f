"""CUDA graphs of the decode step: what the host launches hundreds of times, replayed in one call.

A graph is recorded for each size of a ladder; a step of n sequences replays the smallest that has as many
rows. All read the same buffers, which a step fills first. Rows past the n-th have the place -1 and the
context 0: they are written nowhere, see nothing, and nobody reads what they give.

    one buffer, one copy, [size] each:  slots, positions, adapters int64 | contexts, places int32

Steps with adapters have graphs of their own, recorded once there is room for adapters. What changes in a
slot then changes in place; where slots had to move, `run` refuses them until `adapt` has recorded them anew.
The others know nothing of adapters, and stay.

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
from gpu.lora.base import LoraSlots
from gpu.models.base import Inputs, Model
from protocols.errors import StartError

_LONG, _SHORT = 3, 2
_ROW_BYTES = 8 * _LONG + 4 * _SHORT


class Recorder(Protocol):
    """Makes work repeatable."""

    def begin(self) -> None:
        """Whatever was recorded before is gone, and what comes now shares memory."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work`, then return what does the same again, on the same memory."""
        ...


class CudaRecorder:
    """Records graphs that share one pool of memory, which works because no two of them run at a time.

    The pool is another one at each beginning: torch takes none whose graphs have all gone. All graphs come
    from one stream, since the libraries of matrix products keep memory for each that they have seen.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self.begin()

    def begin(self) -> None:
        """See `Recorder.begin`."""
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder.record`."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()  # once beforehand: kernels are loaded, and libraries take what memory they want
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may be busy with weights, which the mode of a whole process would not bear.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


@dataclasses.dataclass(frozen=True)
class _Buffers:
    """What graphs of one size read: slots, positions, adapters int64 [size], contexts, places int32
    [size]."""

    slots: Tensor
    positions: Tensor
    adapters: Tensor
    contexts: Tensor
    places: Tensor


def packed(
    slots: np.ndarray, batch: Batch, positions: np.ndarray, adapters: np.ndarray | None, size: int
) -> np.ndarray:
    """The buffer of a step of n sequences for a graph of `size` rows: uint8 [size * 32]."""
    count = len(slots)
    buffer = np.zeros(size * _ROW_BYTES, np.uint8)
    long = buffer[: size * 8 * _LONG].view(np.int64).reshape(_LONG, size)
    short = buffer[size * 8 * _LONG :].view(np.int32).reshape(_SHORT, size)
    long[2], short[1] = -1, -1
    long[0, :count], long[1, :count] = slots, positions
    short[0, :count], short[1, :count] = batch.contexts, batch.places
    if adapters is not None:
        long[2, :count] = adapters
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
        self._replays: dict[tuple[int, bool], Callable[[], None]] = {}
        self._lora: LoraSlots | None = None
        self._moved = 0

    def record(self, model: Model, recorder: Recorder, progress: Callable[[str], None]) -> None:
        """Record every size of `model`, the largest first, since the others fit into its memory. To be called
        again when the model is exchanged, or anything has moved in memory."""
        self.release()
        recorder.begin()
        self._lora = model.lora
        self._moved = 0 if model.lora is None else model.lora.moved
        self._record(model, recorder, progress, (False, True) if self._moved else (False,))

    def adapt(self, model: Model, recorder: Recorder, progress: Callable[[str], None]) -> None:
        """Record the steps with adapters, whose slots have moved in memory; the others are as they were."""
        if not self._replays:
            return
        for size in self.sizes:
            self._replays.pop((size, True), None)
        self._moved = 0 if model.lora is None else model.lora.moved
        self._record(model, recorder, progress, (True,))

    def _record(
        self, model: Model, recorder: Recorder, progress: Callable[[str], None], ways: Sequence[bool]
    ) -> None:
        """ways: whether with adapters."""
        kinds = [(size, adapted) for size in reversed(self.sizes) for adapted in ways]
        for done, (size, adapted) in enumerate(kinds):
            progress(f"recording CUDA graphs: {done} of {len(kinds)}")
            self._packed.copy_(torch.from_numpy(self._padding(size)))
            try:
                self._replays[size, adapted] = recorder.record(self._work(model, size, adapted=adapted))
            except torch.OutOfMemoryError as error:
                raise StartError(
                    "there is no memory for CUDA graphs: use --cuda-graphs off, or less --memory-fraction."
                ) from error

    def release(self) -> None:
        """Give up all graphs, and the memory that they work in."""
        self._replays.clear()

    def run(
        self, slots: np.ndarray, batch: Batch, positions: np.ndarray, adapters: np.ndarray | None
    ) -> Tensor | None:
        """Logits float32 [n, vocab] of a step of decodes, valid until the next; None where no graph fits.
        adapters: int64 [n], slots or -1; None where no row has one."""
        count = len(slots)
        which = next((size for size in self.sizes if size >= count), 0), adapters is not None
        stale = adapters is not None and self._lora is not None and self._lora.moved != self._moved
        if stale or which not in self._replays:
            return None
        buffer = packed(slots, batch, positions, adapters, which[0])
        numbers, tables = self._backend.staging.upload(buffer, batch.block_tables)
        self._packed[: len(numbers)].copy_(numbers)
        self._tables[:count, : tables.shape[1]].copy_(tables)
        self._replays[which]()
        return self._logits[:count]

    def _padding(self, size: int) -> np.ndarray:
        """A buffer of nothing but padded rows."""
        nobody = np.zeros(0, np.int64)
        empty = Batch(nobody, nobody, np.zeros((0, 0), np.int32), nobody, nobody, 0)
        buffer = np.zeros(len(self._packed), np.uint8)
        buffer[: size * _ROW_BYTES] = packed(nobody, empty, nobody, None, size)
        return buffer

    def _work(self, model: Model, size: int, *, adapted: bool) -> Callable[[], None]:
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
            adapters = buffers.adapters if adapted else None
            inputs = Inputs(tokens, buffers.positions, attention, adapters=adapters)
            self._logits[:size].copy_(model.forward(inputs))

        return work

    def _buffers(self, size: int) -> _Buffers:
        long = self._packed[: size * 8 * _LONG].view(torch.int64).view(_LONG, size)
        short = self._packed[size * 8 * _LONG : size * _ROW_BYTES].view(torch.int32).view(_SHORT, size)
        return _Buffers(*long, *short)
