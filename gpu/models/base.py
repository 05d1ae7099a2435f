"""What the executor needs of a model."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from torch import Tensor

from gpu.attention import StepAttention
from gpu.kv_pool import KvShape


@dataclasses.dataclass
class Tap:
    """Catches the hidden states that the head is about to see (after the last norm), of `rows`, int64 [k], of
    a step: `states` [k, hidden] once the forward has run."""

    rows: Tensor
    states: Tensor | None = None


class Model(Protocol):
    """A loaded causal language model."""

    @property
    def kv(self) -> tuple[KvShape, ...]:
        """What each attention layer keeps in the pages."""
        ...

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention: StepAttention,
        rows: Tensor | None,
        tap: Tap | None = None,
    ) -> Tensor:
        """Run one flattened step.

        tokens, positions: int64 [T]. rows: int64 [n], whose logits are wanted; None = all.
        Returns float32 logits [n, vocab_size].
        """
        ...
