"""What a model asks of attention, and what a backend is told about a step.

A step is one flattened ("ragged") batch of rows: first the tokens of the prefill chunks, one
sequence after another, then one token for each decoding sequence.

    rows       c0 c0 c0 c0 | c1 c1 | d0 | d1 | d2
    query_lens 4             2       1    1    1
    contexts   = positions of a sequence that exist after the step; its rows are the last ones of them

A backend writes the step's keys and values into the pages and attends over the pages: one call a
layer, with everything that is the same in all layers computed once, in `prepare`.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gpu.kv_pool import KvPool


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Where the rows of a step lie, on the host. n sequences, T rows.

    query_lens, contexts: int64 [n], rows of a sequence and its length after the step.
    block_tables: int32 [n, P], page numbers; entries past a sequence's last page are undefined.
    positions: int64 [T] of each row in its sequence. places: int64 [T], page * page_size + offset,
    where the row's key and value go. decodes: the last `decodes` sequences have one row each.
    """

    query_lens: npt.NDArray[np.int64]
    contexts: npt.NDArray[np.int64]
    block_tables: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    decodes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """How one layer attends. scale: factor on query times key. window: a row sees the last `window`
    positions including its own, 0 = all. softcap: scores become softcap * tanh(score / softcap), 0 = off."""

    scale: float
    window: int = 0
    softcap: float = 0.0


class StepAttention(Protocol):
    """Attention within one step."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: Spec, sinks: Tensor | None = None
    ) -> Tensor:
        """Store key and value of the step's rows, then attend causally within each sequence.

        query: [T, heads, key_dim]; key: [T, kv_heads, key_dim]; value: [T, kv_heads, value_dim].
        sinks: [heads] extra logits that take part in each softmax and carry no value (GPT-OSS).
        Returns [T, heads, value_dim].
        """
        ...


class Backend(Protocol):
    """Attention over a pool."""

    pool: KvPool

    def prepare(self, batch: Batch) -> StepAttention:
        """Compute once what all layers of a step share."""
        ...
