"""What an adapter is to a model: low-rank changes of the linear maps that it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

PARTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The fused linear maps of a decoder layer, in the order in which they run, and the modules that each is
made of."""
QKV, OUTPUT, GATE_UP, DOWN = range(len(PARTS))


@dataclasses.dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one linear map [n, k]. down: A [rank, k]; up: B [n, rank]; both float32. scale: alpha /
    rank, or alpha / sqrt(rank) for rank-stabilised adapters."""

    down: Tensor
    up: Tensor
    scale: float


Changes = Mapping[str, LowRank]
"""An adapter's changes by module, "layers.3.self_attn.q_proj"."""


class LoraSlots(Protocol):
    """Where a model keeps the adapters that a step may go through. shapes: (n, k) of each module that an
    adapter may change, by name. moved: how often what lies in slots has moved in memory."""

    shapes: Mapping[str, tuple[int, int]]
    moved: int

    def prepare(self, changes: Changes) -> Any:
        """The adapter as this model multiplies with it, in the host's memory."""

    def hold(self, slots: int, rank: int) -> None:
        """Make room for any adapters in so many slots, of this rank at most, where room has to be made before
        they come. Nothing moves for them then."""

    def reserve(self, slots: int, adapters: Sequence[Any]) -> bool:
        """Make room for any of these prepared adapters in any of so many slots; whether anything moved."""

    def put(self, slot: int, prepared: Any) -> None:
        """`prepared` takes the slot."""

    def clear(self, slot: int) -> None:
        """The slot is empty."""


class StepLora(Protocol):
    """The adapters of one step."""

    def add(self, number: int, x: Tensor, y: Tensor) -> Tensor:
        """y [T, n], what the base makes of x [T, k] in linear map `number`, with the changes added in
        place."""


class DecoderSlots(LoraSlots, Protocol):
    """Slots of a decoder that asks for each linear map."""

    def step(self, adapters: Tensor) -> StepLora:
        """The adapters of a step's rows: int64 [T] on the device, slots or -1."""


def shapes(layers: int, sizes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """`LoraSlots.shapes` of layers that are all alike. sizes: (n, k) by name within a layer."""
    return {f"layers.{layer}.{name}": size for layer in range(layers) for name, size in sizes.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Fused:
    """The changes of the modules of one fused map together, R ranks in all. down: [R, k]; up: [n, R], zero
    where a rank belongs to another module; scale: [R]. float32."""

    down: Tensor
    up: Tensor
    scale: Tensor


def fuse(changes: Changes, modules: Sequence[str], sizes: Mapping[str, tuple[int, int]]) -> Fused | None:
    """The changes of `modules`, whose outputs lie one behind the other; None where there are none."""
    found = [(name, changes[name]) for name in modules if name in changes]
    if not found:
        return None
    ranks = sum(len(change.down) for _, change in found)
    up = torch.zeros(sum(sizes[name][0] for name in modules), ranks)
    row = rank = 0
    for name in modules:
        n, change = sizes[name][0], changes.get(name)
        if change is not None:
            up[row : row + n, rank : rank + len(change.down)] = change.up
            rank += len(change.down)
        row += n
    scale = torch.cat([torch.full((len(change.down),), change.scale) for _, change in found])
    return Fused(torch.cat([change.down for _, change in found]), up, scale)


def fused_sizes(
    slots_shapes: Mapping[str, tuple[int, int]], layers: int
) -> list[tuple[int, int, int] | None]:
    """(n, k, modules) of every fused map, in the order of `fused_maps`; None where no adapter may change
    it."""
    found = [[slots_shapes[name] for name in modules] for modules in _modules(slots_shapes, layers)]
    return [(sum(n for n, _ in sizes), sizes[0][1], len(sizes)) if sizes else None for sizes in found]


def _modules(slots_shapes: Mapping[str, tuple[int, int]], layers: int) -> list[list[str]]:
    """Names of the modules of every fused map, as far as adapters may change them."""
    names = [[f"layers.{layer}.{module}" for module in part] for layer in range(layers) for part in PARTS]
    return [[name for name in modules if name in slots_shapes] for modules in names]


def fused_maps(
    changes: Changes, slots_shapes: Mapping[str, tuple[int, int]], layers: int
) -> list[Fused | None]:
    """`fuse` of every fused map: those of layer 0 in the order of PARTS, then those of layer 1, and so on."""
    present = _modules(slots_shapes, layers)
    return [fuse(changes, modules, slots_shapes) if modules else None for modules in present]
