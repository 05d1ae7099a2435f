"""Adapters by Triton's grouped product: `gpu.lora.base.LoraSlots` of a decoder on a GPU.

Each linear map costs two launches more, however many adapters a step has: t = A x of the rows that have
one, then
y += B t. A row reads its own adapter alone. Slots lie in tensors that stay where they are until one is too
small: `moved` counts how often they were laid anew, which is when CUDA graphs that read them are stale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpu.cuda.grouped_kernels import Groups, grouped
from gpu.lora.base import Changes, Fused, fused_maps, fused_sizes

_RANKS = 16
"""A change is filled up with zeros to a multiple of so many ranks."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Factors:
    """One map's change, r ranks: down [r, k], up [n, r] with the scale in it, on the host."""

    down: Tensor
    up: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class _Room:
    """One map's changes in all slots: down [slots, R, k], up [slots, n, R]; ranks: int32 [slots], 0 where a
    slot has none."""

    down: Tensor
    up: Tensor
    ranks: Tensor


Prepared = Sequence[_Factors | None]


def _padded(rank: int) -> int:
    return -(-rank // _RANKS) * _RANKS


class GroupedStep:
    """The adapters of one step."""

    def __init__(self, rooms: Mapping[int, _Room], groups: Groups) -> None:
        self._rooms, self._groups = rooms, groups

    def add(self, number: int, x: Tensor, y: Tensor) -> Tensor:
        """See `StepLora.add`."""
        room = self._rooms.get(number)
        if room is None:
            return y
        inner = x.new_empty(len(x), room.down.shape[1])
        grouped(x, room.down, self._groups, inner, rows=room.ranks)
        return grouped(inner, room.up, self._groups, y, columns=room.ranks, adds=True)


class GroupedSlots:
    """Slots of a decoder of `layers` layers. moved: how often what lies in them was laid elsewhere."""

    def __init__(
        self, layers: int, shapes: Mapping[str, tuple[int, int]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shapes, self.moved = shapes, 0
        self._layers, self._dtype, self._device = layers, dtype, device
        self._rooms: dict[int, _Room] = {}
        self._slots = 0

    def prepare(self, changes: Changes) -> Prepared:
        """See `LoraSlots.prepare`."""
        return [self._factors(change) for change in fused_maps(changes, self.shapes, self._layers)]

    @torch.inference_mode()
    def hold(self, slots: int, rank: int) -> None:
        """See `LoraSlots.hold`."""
        self._slots = max(slots, self._slots)
        for number, size in enumerate(fused_sizes(self.shapes, self._layers)):
            if size is not None:
                n, k, modules = size
                self._widen(number, n, k, _padded(modules * rank))

    @torch.inference_mode()
    def reserve(self, slots: int, adapters: Sequence[Prepared]) -> bool:
        """See `LoraSlots.reserve`."""
        before = self.moved
        for prepared in adapters:
            self._fit(slots, prepared)
        return self.moved > before

    @torch.inference_mode()
    def put(self, slot: int, prepared: Prepared) -> None:
        """See `LoraSlots.put`."""
        self.clear(slot)
        self._fit(slot + 1, prepared)
        for number, factors in enumerate(prepared):
            if factors is not None:
                room, rank = self._rooms[number], len(factors.down)
                padded = _padded(rank)
                room.down[slot, :rank].copy_(factors.down, non_blocking=True)
                room.up[slot, :, :rank].copy_(factors.up, non_blocking=True)
                room.down[slot, rank:padded].zero_()
                room.up[slot, :, rank:padded].zero_()
                room.ranks[slot].fill_(padded)

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """See `LoraSlots.clear`."""
        for room in self._rooms.values():
            room.ranks[slot : slot + 1].zero_()

    def step(self, adapters: Tensor) -> GroupedStep:
        """See `DecoderSlots.step`."""
        return GroupedStep(self._rooms, Groups.of(adapters, self._slots))

    def _factors(self, change: Fused | None) -> _Factors | None:
        if change is None:
            return None
        both = change.down.to(self._dtype), (change.up * change.scale).to(self._dtype)
        return _Factors(*(each.pin_memory() if self._device.type == "cuda" else each for each in both))

    def _fit(self, slots: int, prepared: Prepared) -> None:
        self._slots = max(slots, self._slots)
        for number, factors in enumerate(prepared):
            if factors is not None:
                rank, k = factors.down.shape
                self._widen(number, len(factors.up), k, _padded(rank))
        for number, held in list(self._rooms.items()):
            self._widen(number, held.up.shape[1], held.down.shape[2], 0)

    def _widen(self, number: int, n: int, k: int, rank: int) -> None:
        """Room for all slots and this rank in a map [n, k], with what was there."""
        held, slots = self._rooms.get(number), self._slots
        if held is not None:
            count, before = held.down.shape[:2]
            if count >= slots and before >= rank:
                return
            rank = max(rank, before)
        made = _Room(
            torch.zeros(slots, rank, k, dtype=self._dtype, device=self._device),
            torch.zeros(slots, n, rank, dtype=self._dtype, device=self._device),
            torch.zeros(slots, dtype=torch.int32, device=self._device),
        )
        if held is not None:
            made.down[:count, :before] = held.down
            made.up[:count, :, :before] = held.up
            made.ranks[:count] = held.ranks
        self._rooms[number] = made
        self.moved += 1
