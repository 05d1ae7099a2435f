"""What the executor needs of a model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gpu.attention import StepAttention
from gpu.kv_pool import KvShape


class Model(Protocol):
    """A loaded causal language model."""

    @property
    def kv(self) -> tuple[KvShape, ...]:
        """What each attention layer keeps in the pages."""
        ...

    def forward(
        self, tokens: Tensor, positions: Tensor, attention: StepAttention, rows: Tensor | None
    ) -> Tensor:
        """Run one flattened step.

        tokens, positions: int64 [T]. rows: int64 [n], whose logits are wanted; None = all.
        Returns float32 logits [n, vocab_size].
        """
        ...
