"""The decoder of `gpu.models.llama` with Triton between its matrix products: a handful of launches a layer.

It computes what `Decoder` computes, from the same tensors, and leaves what it has no kernel for to it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gpu.attention.paged import PagedStep
from gpu.lora.base import DOWN, GATE_UP, OUTPUT, QKV, StepLora
from gpu.models.base import Inputs
from gpu.models.llama import Decoder, Layer
from gpu.models.mixture import Mixture
from gpu.models.spec import DecoderSpec

GROUPED = ("cuda",)
"""Types of devices whose adapters go through Triton's grouped product; its interpreter would be slow."""


class TritonDecoder(Decoder):
    """A `Decoder` for steps whose attention is over pages on a GPU."""

    def __init__(self, spec: DecoderSpec, dtype: torch.dtype, device: torch.device, context: int) -> None:
        """context: positions that exist, at most."""
        super().__init__(spec, dtype, device)
        if device.type in GROUPED:
            # Triton is imported only where its kernels run.
            from gpu.lora.grouped import GroupedSlots

            self.lora = GroupedSlots(len(self.layers), spec.modules, dtype, device)
        cos, sin = self.rotary.tables(context)
        self._turns = cos.contiguous(), sin.contiguous()

    def forward(self, inputs: Inputs) -> Tensor:
        """See `Model.forward`."""
        attention = inputs.attention
        if not isinstance(attention, PagedStep):
            return super().forward(inputs)
        from gpu.cuda.fused_kernels import add_norm

        residual = functional.embedding(inputs.tokens, self.embedding)
        lora = None if inputs.adapters is None else self.lora.step(inputs.adapters)
        delta: Tensor | None = None
        for layer in self.layers:
            delta = self._layer(layer, residual, delta, inputs.positions, attention, lora)
        if delta is not None:
            residual += delta
        if inputs.tap is not None:
            inputs.tap.states = self.norm(residual.index_select(0, inputs.tap.rows))
        if inputs.rows is not None:
            residual = residual.index_select(0, inputs.rows)
        if len(residual) == 0:
            return residual.new_empty(0, self.spec.vocab_size, dtype=torch.float32)
        return self.head(add_norm(residual, None, self.norm.weight, self.spec.eps)).float()

    def _layer(
        self,
        layer: Layer,
        residual: Tensor,
        delta: Tensor | None,
        positions: Tensor,
        attention: PagedStep,
        lora: StepLora | None,
    ) -> Tensor:
        """What the layer adds to residual + delta, of which the sum is in `residual` then."""
        from gpu.cuda.fused_kernels import add_norm, gated, turn_and_store

        spec = self.spec
        x = add_norm(residual, delta, layer.before_attention.weight, spec.eps)
        query = turn_and_store(
            layer.mapped(QKV, layer.qkv, x, lora),
            spec.heads,
            self._turns,
            positions,
            layer.head_weights,
            spec.eps,
            attention.pool.layers[layer.index],
            attention.places,
        )
        attended = attention.attend_stored(layer.index, query, layer.attention)
        output = layer.mapped(OUTPUT, layer.output, attended.flatten(1), lora)
        x = add_norm(residual, output, layer.before_mlp.weight, spec.eps)
        if layer.mixture is not None:
            return mixed(layer.mixture, x)
        if spec.activation in ("silu", "swish"):
            gate_up = layer.mapped(GATE_UP, layer.gate_up, x, lora)
            return layer.mapped(DOWN, layer.down, gated(gate_up), lora)
        return layer.feed(x, lora)


def mixed(mixture: Mixture, x: Tensor) -> Tensor:
    """What the experts make of rows [T, hidden]: `Mixture.__call__` in two grouped products."""
    from gpu.cuda.fused_kernels import gated
    from gpu.cuda.grouped_kernels import Groups, grouped

    spec, hidden = mixture.spec, x.shape[1]
    factors, experts = mixture.route(x)
    groups = Groups.of(experts.flatten(), spec.experts)
    if mixture.counts is not None:
        mixture.counts += groups.starts.diff()
    gate_up, down = mixture.stacked()
    both = x.new_empty(len(groups.order), 2 * spec.inner)
    grouped(x, gate_up.numbers, groups, both, shared=spec.chosen, scale=gate_up.scale)
    inner = gated(both) if mixture.silu else mixture.activated(both)
    out = x.new_empty(len(groups.order), hidden)
    grouped(inner, down.numbers, groups, out, factors=factors.flatten(), scale=down.scale)
    return out.view(len(x), spec.chosen, hidden).sum(1)
