"""A decoder of the Llama family whose whole step is one call of the CPU's kernels.

It computes what `gpu.models.llama.Decoder` composes, from the same weights, packed. Products are summed in
an order that depends on nothing but the model, so a sequence gets the same logits, bit for bit, alone
and in any crowd, decoded and prefilled again.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from gpu.cpu.attention import CpuStep
from gpu.cpu.library import (
    ELEMENT_TYPES,
    HALF_PANEL,
    ElementType,
    HeadsStruct,
    Kernels,
    LayerStruct,
    ModelStruct,
    Packed,
    PagesStruct,
    StepStruct,
    address,
)
from gpu.kv_pool import KvPool, KvShape
from gpu.layers import Linear
from gpu.lora.packed import PackedSlots
from gpu.models.base import Greedy, Inputs, Model
from gpu.models.llama import Decoder, Layer
from gpu.models.mixture import Mixture
from gpu.weights import Tensors, fill

_UNIT_ROWS = 256
"""Rows of a unit matrix that are multiplied at a time."""

ACTIVATIONS = {"silu": 0, "swish": 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "relu": 3}
"""`enum Activation` by the name that a config gives it."""


class FusedDecoder:
    """`gpu.models.base.Model` over packed weights."""

    def __init__(
        self,
        decoder: Decoder,
        kernels: Kernels,
        context: int,
        *,
        quantized: bool,
        like: FusedDecoder | None = None,
    ) -> None:
        """Takes the filled `decoder` apart: each of its matrices is freed when it has been packed.

        context: positions that exist, at most. quantized: keep 8-bit weights, with a scale for each row.
        like: one whose decoder shares blocks with `decoder`, which are packed.
        """
        self.spec, self._kernels = decoder.spec, kernels
        self._quantized, self._context = quantized, context
        self._decoder = decoder
        packed: dict[int, _PackedLayer] = {}
        if like is not None:
            layers = zip(like._decoder.layers, like._layers, strict=True)
            packed = {id(layer): done for layer, done in layers}
        self._layers: list[_PackedLayer] = [
            packed.get(id(layer)) or self._pack_layer(layer) for layer in decoder.layers
        ]
        self._embedding = decoder.embedding
        self._norm = decoder.norm.weight.float()
        shared = like is not None and like._decoder.head is decoder.head
        self._head: Packed = like._head if like is not None and shared else self._pack(decoder.head)
        shapes, dtype = self.spec.modules, self._embedding.dtype
        self.lora: PackedSlots = (
            like.lora if like is not None else PackedSlots(len(self._layers), shapes, dtype, _interleaved)
        )
        self._cos, self._sin = (table.contiguous() for table in decoder.rotary.tables(context))
        self._bound: tuple[KvPool, ModelStruct, Any] | None = None
        self._logits = torch.empty(0)

    @property
    def kv(self) -> tuple[KvShape, ...]:
        """See `Model.kv`."""
        return (self.spec.kv,) * len(self._layers)

    @property
    def mixtures(self) -> dict[int, Mixture]:
        """There are none that can be counted."""
        return {}

    def take_adapters(self, other: Model) -> None:
        """See `Model.take_adapters`."""
        assert isinstance(other, FusedDecoder)
        self.lora = other.lora

    def forward(self, inputs: Inputs) -> Tensor:
        """See `Model.forward`. The logits are valid until the next call."""
        tap = inputs.tap
        model, step, logits, _rows = self._step(inputs)
        if tap is not None:
            tap.states = torch.empty(len(tap.rows), self.spec.hidden)
            step.tapped, step.tapped_count = tap.rows.data_ptr(), len(tap.rows)
            step.states = tap.states.data_ptr()
        self._kernels.forward(model, step)
        return logits

    @property
    def greedy(self) -> Greedy:
        """See `Model.greedy`."""
        return self._decode

    def _decode(self, inputs: Inputs, rounds: int) -> Tensor:
        """See `Greedy`."""
        likeliest = torch.empty(rounds, len(inputs.tokens), dtype=torch.int64)
        model, step, _logits, _rows = self._step(inputs)
        step.likeliest = likeliest.data_ptr()
        return likeliest[: self._kernels.decode(model, step, rounds)]

    def _step(self, inputs: Inputs) -> tuple[ModelStruct, StepStruct, Tensor, object]:
        """What the kernels are told of a step, the logits that they write, and what must live until then."""
        attention = inputs.attention
        assert isinstance(attention, CpuStep)
        logits = self._room(len(inputs.tokens) if inputs.rows is None else len(inputs.rows))
        batch = attention.struct
        batch.positions = inputs.positions.data_ptr()
        step = StepStruct(
            batch, inputs.tokens.data_ptr(), address(inputs.rows), len(logits), logits.data_ptr()
        )
        rows = None
        if inputs.adapters is not None:
            step.adapted, rows = self.lora.step(inputs.adapters)
        return self._model(attention.pool), step, logits, rows

    def wanted(self) -> dict[str, Tensor]:
        """See `Model.wanted`."""
        return self._decoder.wanted()

    def ignores(self, name: str) -> bool:
        """See `Model.ignores`."""
        return self._decoder.ignores(name)

    def renewed(
        self, tensors: Tensors, changed: Collection[str], progress: Callable[[str], None]
    ) -> FusedDecoder:
        """See `Model.renewed`."""
        decoder = self._decoder.blank(changed)
        fill(tensors, decoder.targets(self._decoder), progress)
        return FusedDecoder(decoder, self._kernels, self._context, quantized=self._quantized, like=self)

    def read(self, name: str) -> Tensor:
        """See `Model.read`. 8-bit weights are told as what they stand for."""
        return self._decoder.read(name, self._rows)

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """See `Model.parts`."""
        yield from (("embedding", self._embedding), ("norm", self._norm))
        yield from self._head.parts("head")
        for index, layer in enumerate(self._layers):
            yield from layer.parts(f"layers.{index}")

    def _rows(self, linear: Linear) -> Tensor:
        """The rows of a packed map: what it makes of the unit matrix."""
        packed = self._packed_of(linear)
        dtype = torch.float32 if packed.kind is ElementType.FLOAT else torch.bfloat16
        unit = torch.eye(packed.k, dtype=dtype)
        bare = dataclasses.replace(packed, bias=None)
        products = [self._kernels.linear(bare, part) for part in unit.split(_UNIT_ROWS)]
        rows = torch.cat(products).t().to(self._embedding.dtype)
        layer = next((layer for layer in self._decoder.layers if layer.gate_up is linear), None)
        if layer is None:
            return rows
        order = _interleaved(torch.arange(1, 2 * self.spec.intermediate + 1)[:, None])[:, 0]
        return rows[torch.argsort(order)[(order == 0).sum() :]]

    def _packed_of(self, linear: Linear) -> Packed:
        if linear is self._decoder.head:
            return self._head
        for layer, packed in zip(self._decoder.layers, self._layers, strict=True):
            for (found, _), done in zip(layer.matrices(), packed.linear, strict=True):
                if found is linear:
                    return done
        raise KeyError("a linear map of another decoder")

    def _room(self, rows: int) -> Tensor:
        size = rows * self.spec.vocab_size
        if len(self._logits) < size:
            self._logits = torch.empty(size)
        return self._logits[:size].view(rows, self.spec.vocab_size)

    def _pack_layer(self, layer: Layer) -> _PackedLayer:
        heads = layer.head_weights
        norms = None if heads is None else (heads[0].float(), heads[self.spec.heads].float())
        return _PackedLayer(
            qkv=self._pack(layer.qkv),
            output=self._pack(layer.output),
            gate_up=self._pack(layer.gate_up, interleave=True),
            down=self._pack(layer.down),
            norms=(layer.before_attention.weight.float(), layer.before_mlp.weight.float()),
            head_norms=norms,
        )

    def _pack(self, linear: Linear, *, interleave: bool = False) -> Packed:
        weight, bias = linear.weight, linear.bias
        assert weight is not None
        linear.weight = None
        if interleave:
            weight = _interleaved(weight)
            bias = None if bias is None else _interleaved(bias[:, None])[:, 0]
        scale = None
        if self._quantized:
            weight, scale = quantize(weight)
        return self._kernels.pack(weight, None if bias is None else bias.float(), scale)

    def _model(self, pool: KvPool) -> ModelStruct:
        """The model with the pages of `pool`."""
        if self._bound is None or self._bound[0] is not pool:
            layers = (LayerStruct * len(self._layers))()
            for index, layer in enumerate(self._layers):
                pages = pool.layers[index]
                layers[index] = layer.struct(
                    PagesStruct(pages.keys.data_ptr(), pages.values.data_ptr()), self.spec.windows[index]
                )
            self._bound = pool, self._struct(pool, layers), layers
        return self._bound[1]

    def _struct(self, pool: KvPool, layers: Any) -> ModelStruct:
        spec = self.spec
        return ModelStruct(
            hidden=spec.hidden,
            inner=spec.intermediate,
            vocab=spec.vocab_size,
            layers=len(self._layers),
            activation=ACTIVATIONS[spec.activation],
            kind=ELEMENT_TYPES[self._embedding.dtype],
            eps=spec.eps,
            scale=spec.head_dim**-0.5,
            heads=HeadsStruct(spec.heads, spec.kv_heads, spec.head_dim, spec.head_dim, pool.page_size),
            embedding=self._embedding.data_ptr(),
            cos=self._cos.data_ptr(),
            sin=self._sin.data_ptr(),
            norm=self._norm.data_ptr(),
            head=self._head.struct(),
            layer=ctypes.cast(layers, ctypes.POINTER(LayerStruct)),
        )


class _PackedLayer:
    """One layer's packed weights."""

    def __init__(
        self,
        *,
        qkv: Packed,
        output: Packed,
        gate_up: Packed,
        down: Packed,
        norms: tuple[Tensor, Tensor],
        head_norms: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.linear = (qkv, output, gate_up, down)
        self._norms = norms
        self._head_norms = head_norms or (None, None)

    def struct(self, pages: PagesStruct, window: int) -> LayerStruct:
        norms = (address(each) for each in (*self._norms, *self._head_norms))
        return LayerStruct(*(each.struct() for each in self.linear), *norms, pages, window)

    def parts(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Everything that is computed with."""
        for name, packed in zip(("qkv", "output", "gate_up", "down"), self.linear, strict=True):
            yield from packed.parts(f"{prefix}.{name}")
        vectors = ("before_attention", "before_mlp", "query_norm", "key_norm")
        for name, norm in zip(vectors, (*self._norms, *self._head_norms), strict=True):
            if norm is not None:
                yield f"{prefix}.{name}", norm


def _interleaved(rows: Tensor) -> Tensor:
    """Gate rows, then up rows [2 * inner, k] -> 32 of the one, 32 of the other, in turn; zeros fill up."""
    gate, up = rows.chunk(2)
    missing = -len(gate) % HALF_PANEL
    parts = [
        torch.nn.functional.pad(part, (0, 0, 0, missing)).unflatten(0, (-1, HALF_PANEL))
        for part in (gate, up)
    ]
    return torch.stack(parts, dim=1).flatten(0, 2)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [n, k] and the scale of each row, float32 [n]: round to nearest, the greatest weight is 127."""
    scale = weight.abs().amax(1).float().clamp(min=1e-12) / 127
    return (weight.float() / scale[:, None]).round_().to(torch.int8), scale


def fits(decoder: Decoder, dtype: torch.dtype, device: torch.device, *, quantized: bool) -> bool:
    """Whether the kernels can run this model; 8-bit weights are multiplied with bfloat16 numbers."""
    dtypes = (torch.bfloat16,) if quantized else (torch.float32, torch.bfloat16)
    return (
        device.type == "cpu"
        and dtype in dtypes
        and decoder.spec.head_dim % 2 == 0
        and decoder.spec.mixture is None
    )
