"""Adapters for the CPU's kernels: `gpu.lora.base.LoraSlots` of a fused decoder, as `kernels/lora.h` reads
them.

What a slot holds is packed once, when its adapter is loaded; a slot is then a row of a table of pointers.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gpu.cpu.library import HALF_PANEL, UNITS, AdaptedStruct, LowRankStruct
from gpu.lora.base import GATE_UP, PARTS, Changes, Fused, fused_maps


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """One map's change, R ranks. down: [R, k] padded to whole units; scale: float32 [R]; up: numbers of all
    blocks; blocks: int64 [blocks, 3], first rank, ranks, where they begin in `up`."""

    down: Tensor
    scale: Tensor
    up: Tensor
    blocks: Tensor

    def struct(self) -> LowRankStruct:
        """For a call; valid as long as this object lives."""
        return LowRankStruct(
            len(self.down), *(each.data_ptr() for each in (self.down, self.scale, self.up, self.blocks))
        )


Prepared = Sequence[Packed | None]


class PackedSlots:
    """Slots of a decoder of `layers` layers. interleave: how the rows of its gate and up map [2 * inner, .]
    lie."""

    def __init__(
        self,
        layers: int,
        shapes: Mapping[str, tuple[int, int]],
        dtype: torch.dtype,
        interleave: Callable[[Tensor], Tensor],
    ) -> None:
        self.shapes, self.moved = shapes, 0
        self._layers, self._maps = layers, layers * len(PARTS)
        self._dtype, self._interleave = dtype, interleave
        self._slots: list[Prepared | None] = []
        self._table = (LowRankStruct * 0)()
        self._most = 0

    def prepare(self, changes: Changes) -> Prepared:
        """See `LoraSlots.prepare`."""
        fused = fused_maps(changes, self.shapes, self._layers)
        return [self._pack(change, number % len(PARTS)) for number, change in enumerate(fused)]

    def hold(self, slots: int, rank: int) -> None:
        """See `LoraSlots.hold`: room is made when adapters come."""

    def reserve(self, slots: int, adapters: Sequence[Prepared]) -> bool:
        """See `LoraSlots.reserve`."""
        return False

    def put(self, slot: int, prepared: Prepared) -> None:
        """See `LoraSlots.put`."""
        self._slots += [None] * (slot + 1 - len(self._slots))
        self._slots[slot] = prepared
        self._lay()

    def clear(self, slot: int) -> None:
        """See `LoraSlots.clear`."""
        if slot < len(self._slots) and self._slots[slot] is not None:
            self._slots[slot] = None
            self._lay()

    def step(self, adapters: Tensor) -> tuple[AdaptedStruct, object]:
        """For a call. adapters: int64 [T], slot of each row's adapter or -1, alive meanwhile, as is the
        second result."""
        numbers = adapters.numpy()
        rows = np.flatnonzero(numbers >= 0)
        rows = rows[np.argsort(numbers[rows], kind="stable")]
        struct = AdaptedStruct(
            ctypes.addressof(self._table),
            self._maps,
            adapters.data_ptr(),
            rows.ctypes.data,
            len(rows),
            max(self._most, 1),
        )
        return struct, rows

    def _lay(self) -> None:
        """Make the table anew."""
        none = LowRankStruct()
        cells = [
            none if change is None else change.struct()
            for held in self._slots
            for change in (held if held is not None else [None] * self._maps)
        ]
        self._table = (LowRankStruct * len(cells))(*cells)
        self._most = max((cell.ranks for cell in cells), default=0)

    def _pack(self, change: Fused | None, part: int) -> Packed | None:
        if change is None:
            return None
        up = self._interleave(change.up) if part == GATE_UP else change.up
        up = torch.nn.functional.pad(up, (0, 0, 0, -len(up) % (2 * HALF_PANEL)))
        parts, blocks, at = [], [], 0
        for block in up.unflatten(0, (-1, HALF_PANEL)):
            used = block.any(0).nonzero()[:, 0].tolist()
            first, end = (used[0], used[-1] + 1) if used else (0, 0)
            parts.append(block[:, first:end].T.flatten())
            blocks.append((first, end - first, at))
            at += len(parts[-1])
        width = UNITS * 4 // self._dtype.itemsize
        down = torch.nn.functional.pad(change.down, (0, -change.down.shape[1] % width))
        return Packed(
            down.to(self._dtype).contiguous(),
            change.scale,
            torch.cat([*parts, torch.zeros(HALF_PANEL)]).to(self._dtype),
            torch.tensor(blocks, dtype=torch.int64),
        )
