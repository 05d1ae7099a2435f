"""Adapters by torch's operations: `gpu.lora.base.LoraSlots` of a decoder composed of `gpu.layers`.

All adapters in slots lie side by side, so each linear map costs two products more, however many adapters a
step has: t = x A^T over the ranks of all of them, of which each row keeps those of its own adapter, then y
+= t B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpu.lora.base import Changes, Fused, fused_maps


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """One map's changes in all slots, R ranks. down: [k, R]; up: [R, n]; scale: [R]; owner: int64 [R],
    slots."""

    down: Tensor
    up: Tensor
    scale: Tensor
    owner: Tensor


class DenseStep:
    """The adapters of one step. adapters: int64 [T, 1], slot of each row's adapter, -1 for none."""

    def __init__(self, stacks: Sequence[Stack | None], adapters: Tensor) -> None:
        self._stacks, self._adapters = stacks, adapters

    def add(self, number: int, x: Tensor, y: Tensor) -> Tensor:
        """See `StepLora.add`."""
        stack = self._stacks[number]
        if stack is None:
            return y
        inner = torch.where(self._adapters == stack.owner, x @ stack.down * stack.scale, 0)
        return y.addmm_(inner.to(y.dtype), stack.up)


class DenseSlots:
    """Slots of a decoder of `layers` layers."""

    def __init__(
        self, layers: int, shapes: Mapping[str, tuple[int, int]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shapes, self.moved = shapes, 0
        self._layers, self._dtype, self._device = layers, dtype, device
        self._slots: dict[int, Sequence[Fused | None]] = {}
        self._stacks: Sequence[Stack | None] | None = None

    def prepare(self, changes: Changes) -> Sequence[Fused | None]:
        """See `LoraSlots.prepare`."""
        return fused_maps(changes, self.shapes, self._layers)

    def hold(self, slots: int, rank: int) -> None:
        """See `LoraSlots.hold`: room is made when adapters come."""

    def reserve(self, slots: int, adapters: Sequence[object]) -> bool:
        """See `LoraSlots.reserve`."""
        return False

    def put(self, slot: int, prepared: Sequence[Fused | None]) -> None:
        """See `LoraSlots.put`."""
        self._slots[slot], self._stacks = prepared, None

    def clear(self, slot: int) -> None:
        """See `LoraSlots.clear`."""
        if self._slots.pop(slot, None) is not None:
            self._stacks = None

    def step(self, adapters: Tensor) -> DenseStep:
        """See `DecoderSlots.step`."""
        if self._stacks is None:
            self._stacks = [self._stack(number) for number in range(len(next(iter(self._slots.values()))))]
        return DenseStep(self._stacks, adapters[:, None])

    def _stack(self, number: int) -> Stack | None:
        held = [(slot, change) for slot, maps in self._slots.items() if (change := maps[number]) is not None]
        if not held:
            return None
        owner = torch.cat([torch.full((len(change.scale),), slot) for slot, change in held])
        numbers = (
            torch.cat([change.down for _, change in held]).T,
            torch.cat([change.up for _, change in held], dim=1).T,
            torch.cat([change.scale for _, change in held]),
        )
        down, up, scale = (each.to(self._device, self._dtype).contiguous() for each in numbers)
        return Stack(down, up, scale, owner.to(self._device))
