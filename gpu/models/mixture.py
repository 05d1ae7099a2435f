"""A mixture of experts in place of a layer's feed-forward half: each row goes to the few that a router chose.

Rows are sorted by their experts, so that each expert's are side by side and one grouped product serves all of
them; nothing waits for the device. The matrices of all experts lie in one, one expert's behind another's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import grouped_mm

from gpu.layers import Linear
from protocols.config import Quantization
from protocols.errors import StartError


@dataclasses.dataclass(frozen=True)
class MixtureSpec:
    """experts, of which each row sees `chosen`, of inner size `inner`; normed: their weights sum to one.
    layers: those that have them."""

    experts: int
    chosen: int
    inner: int
    normed: bool
    layers: frozenset[int]


def read_mixture(config: Mapping[str, Any], layers: int) -> MixtureSpec:
    """The mixture of a Qwen3-MoE config.json. StartError names what is missing."""
    experts = _positive("num_experts", config.get("num_experts", config.get("num_local_experts")))
    chosen, inner = (
        _positive(name, config.get(name)) for name in ("num_experts_per_tok", "moe_intermediate_size")
    )
    if chosen > experts:
        raise StartError(f"config.json: {chosen} of {experts} experts cannot be chosen.")
    dense, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step", 1)
    sparse = (layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)
    return MixtureSpec(experts, chosen, inner, bool(config.get("norm_topk_prob", False)), frozenset(sparse))


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, int) or value <= 0:
        raise StartError(f"config.json has no positive {name}.")
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """One matrix of each expert. numbers: [experts, n, k]; scale: float32 [experts, n] of what has 8 bits."""

    numbers: Tensor
    scale: Tensor | None

    @classmethod
    def of(cls, linear: Linear, experts: int, k: int) -> Stack:
        """Views of what lies one behind the other."""
        if linear.quantized is not None:
            numbers, scale = linear.quantized.numbers, linear.quantized.scale
            return cls(numbers.view(experts, -1, k), scale.view(experts, -1))
        assert linear.weight is not None
        return cls(linear.weight.view(experts, -1, k), None)

    def product(self, x: Tensor, experts: Tensor, ends: Tensor) -> Tensor:
        """Rows [T, k], sorted by `experts`, int64 [T], through the matrices of these: [T, n]. ends: int32
        [experts], where the rows of each end."""
        y = grouped_mm(x, self.numbers.to(x.dtype).transpose(1, 2), offs=ends)
        return y if self.scale is None else y.mul_(self.scale.index_select(0, experts))


class Mixture:
    """Router and experts of one layer. counts: int64 [experts], to which the rows of each expert are added;
    None while nobody counts."""

    def __init__(
        self,
        spec: MixtureSpec,
        hidden: int,
        activation: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.spec, self._hidden, self._activation = spec, hidden, activation
        self.silu = activation is functional.silu
        self.experts = spec.experts
        self.counts: Tensor | None = None
        rows = 2 * spec.experts * spec.inner
        self.router = Linear(hidden, spec.experts, bias=False, dtype=dtype, device=device)
        self.gate_up = Linear(hidden, rows, bias=False, dtype=dtype, device=device)
        self.down = Linear(spec.inner, spec.experts * hidden, bias=False, dtype=dtype, device=device)

    def matrices(self) -> list[tuple[Linear, dict[str, int]]]:
        """See `gpu.models.llama.Layer.matrices`."""
        spec = self.spec
        each = [f"mlp.experts.{expert}." for expert in range(spec.experts)]
        return [
            (self.router, {"mlp.gate": spec.experts}),
            (self.gate_up, {f"{name}{part}_proj": spec.inner for name in each for part in ("gate", "up")}),
            (self.down, {f"{name}down_proj": self._hidden for name in each}),
        ]

    def seal(self, quantization: Quantization) -> None:
        """The weights are final. The router's keep their precision: they are few, and decide."""
        self.router.seal(Quantization.NONE)
        if quantization is not Quantization.NONE:
            self.gate_up.seal(quantization)
            self.down.seal(quantization)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts that each row goes to, int64 [T, chosen], and what each counts, float32 [T, chosen];
        the second first."""
        weights, experts = self.router(x).float().softmax(-1).topk(self.spec.chosen, dim=-1)
        return (weights / weights.sum(-1, keepdim=True) if self.spec.normed else weights), experts

    def stacked(self) -> tuple[Stack, Stack]:
        """[experts, 2 * inner, hidden] and [experts, hidden, inner]."""
        gate_up = Stack.of(self.gate_up, self.experts, self._hidden)
        return gate_up, Stack.of(self.down, self.experts, self.spec.inner)

    def activated(self, both: Tensor) -> Tensor:
        """What gates let through: [., 2 * inner] -> [., inner]."""
        return self._activation(both[:, : self.spec.inner]) * both[:, self.spec.inner :]

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        spec = self.spec
        weights, experts = self.route(x)
        asked, order = experts.flatten().sort(stable=True)
        every = torch.arange(spec.experts, device=x.device)
        ends = torch.searchsorted(asked, every, right=True).to(torch.int32)
        if self.counts is not None:
            self.counts += ends.diff(prepend=ends.new_zeros(1))
        rows = x.index_select(0, order // spec.chosen)
        gate_up, down = self.stacked()
        out = down.product(self.activated(gate_up.product(rows, asked, ends)), asked, ends)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        out = out.index_select(0, back).view(len(x), spec.chosen, self._hidden)
        return (out * weights.to(x.dtype)[:, :, None]).sum(1)
