"""What the executor needs of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol

from torch import Tensor

from gpu.attention import StepAttention
from gpu.kv_pool import KvShape
from gpu.lora.base import LoraSlots
from gpu.models.mixture import Mixture
from gpu.weights import Tensors


@dataclasses.dataclass
class Tap:
    """Catches the hidden states that the head is about to see (after the last norm), of `rows`, int64 [k], of
    a step: `states` [k, hidden] once the forward has run."""

    rows: Tensor
    states: Tensor | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """One flattened step of T rows, as a model sees it.

    tokens, positions: int64 [T]. rows: int64 [n], whose logits are wanted; None = all. tap: what else is.
    adapters: int64 [T], slot of each row's adapter or -1; None where no row has one.
    """

    tokens: Tensor
    positions: Tensor
    attention: StepAttention
    rows: Tensor | None = None
    tap: Tap | None = None
    adapters: Tensor | None = None


class Greedy(Protocol):
    """Decodes several times without coming back to Python in between."""

    def __call__(self, inputs: Inputs, rounds: int) -> Tensor:
        """Steps in a row over one row a sequence, each with the most likely token of the one before: what
        `Model.forward` and an argmax would give. int64 [<= rounds, n]: it ends before a round in which a row
        has no finite greatest logit.

        inputs: of the first step, n rows, all logits wanted and no tap, with block tables that reach as far
        as the last.
        """
        ...


class Model(Protocol):
    """A loaded causal language model."""

    @property
    def kv(self) -> tuple[KvShape, ...]:
        """What each attention layer keeps in the pages."""
        ...

    @property
    def lora(self) -> LoraSlots | None:
        """Where adapters go; None for a model that takes none."""
        ...

    @property
    def greedy(self) -> Greedy | None:
        """Rounds of decodes in a row; None for a model that has to be asked for each."""
        ...

    @property
    def mixtures(self) -> Mapping[int, Mixture]:
        """Its mixtures of experts that can be counted, by layer."""
        ...

    def take_adapters(self, other: Model) -> None:
        """The adapters that are in the slots of `other`, which is of the same kind, are in this one's."""
        ...

    def forward(self, inputs: Inputs) -> Tensor:
        """Run one flattened step: float32 logits [n, vocab_size] of the rows that are wanted."""
        ...

    def wanted(self) -> Mapping[str, Tensor]:
        """Every tensor that a checkpoint must hold: name -> something of its shape and of our dtype."""
        ...

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold `name` without our using it."""
        ...

    def renewed(self, tensors: Tensors, changed: Collection[str], progress: Callable[[str], None]) -> Model:
        """The same model with other weights: those of the names `changed` are read anew, and whatever else
        lies in one tensor with them; the rest is shared. `tensors` holds all, and they fit. This one stays
        as it is."""
        ...

    def read(self, name: str) -> Tensor:
        """A tensor by its checkpoint name, as it is computed with. KeyError where there is none."""
        ...

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that is computed with, as it lies in memory, under names of our own."""
        ...
