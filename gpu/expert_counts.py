"""How many rows each expert of a mixture got, counted while somebody wants to know.

A mixture adds its router's choices to the counts that it is given, on the device, and does nothing where it
has none. Steps are not replayed from graphs meanwhile: these would count the rows that fill a batch up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.models.base import Model
from protocols.errors import VerbError


class ExpertCounts:
    """The counts of one executor."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counts: dict[int, Tensor] = {}
        self.on = False

    def start(self, model: Model) -> None:
        """Count from 0 on. VerbError for a model without experts."""
        mixtures = model.mixtures
        if not mixtures:
            raise VerbError("conflict", "this model has no mixture of experts that is counted.")
        self._counts = {
            layer: torch.zeros(mixture.experts, dtype=torch.int64, device=self._device)
            for layer, mixture in mixtures.items()
        }
        self.on = True
        self.follow(model)

    def follow(self, model: Model) -> None:
        """This model serves from now on."""
        for layer, mixture in model.mixtures.items():
            mixture.counts = self._counts[layer] if self.on else None

    def stop(self, model: Model) -> None:
        """Count no more; the counts stay."""
        self.on = False
        self.follow(model)

    def take(self) -> dict[int, tuple[int, ...]]:
        """Rows of each expert by layer; they begin at 0 again."""
        taken = {layer: tuple(counts.tolist()) for layer, counts in self._counts.items()}
        for counts in self._counts.values():
            counts.zero_()
        return taken
