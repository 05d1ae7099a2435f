"""The Llama / Mistral / Qwen2 / Qwen3 / Qwen3-MoE family: one decoder, composed by its config.

    x -> RMSNorm -> qkv (+bias) -> [RMSNorm of each q and k head] -> RoPE -> attention -> o -> + x
      -> RMSNorm -> act(gate) * up -> down -> + x

The members differ in which biases there are, whether query and key heads are normalised, and which layers
look through a sliding window. q, k and v are one matrix, gate and up another; the checkpoint's
tensors are views of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from gpu.attention import Spec, StepAttention
from gpu.kv_pool import KvShape
from gpu.layers import ACTIVATIONS, Linear, RMSNorm
from gpu.lora.base import DOWN, GATE_UP, OUTPUT, PARTS, QKV, DecoderSlots, StepLora
from gpu.lora.dense import DenseSlots
from gpu.models.base import Greedy, Inputs, Model
from gpu.models.mixture import Mixture
from gpu.models.spec import DecoderSpec
from gpu.rotary import Rotary
from gpu.weights import Tensors, fill
from protocols.config import Quantization

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
"""What a checkpoint calls the tensors outside of the layers."""


class Layer:
    """One decoder layer."""

    def __init__(self, spec: DecoderSpec, index: int, dtype: torch.dtype, device: torch.device) -> None:
        self.index, self.prefix, self._spec = index, f"model.layers.{index}.", spec
        self.attention = Spec(scale=spec.head_dim**-0.5, window=spec.windows[index])
        self._activation = ACTIVATIONS[spec.activation]
        self._turned_heads = spec.heads + spec.kv_heads
        wide, width = spec.heads * spec.head_dim, (spec.heads + 2 * spec.kv_heads) * spec.head_dim
        hidden, inner, biases = spec.hidden, spec.intermediate, spec.biases
        self.qkv = Linear(hidden, width, bias=biases.qkv, dtype=dtype, device=device)
        self.output = Linear(wide, hidden, bias=biases.output, dtype=dtype, device=device)
        self.mixture: Mixture | None = None
        if spec.mixture is not None and index in spec.mixture.layers:
            self.mixture = Mixture(spec.mixture, hidden, self._activation, dtype, device)
        else:
            self.gate_up = Linear(hidden, 2 * inner, bias=biases.mlp, dtype=dtype, device=device)
            self.down = Linear(inner, hidden, bias=biases.mlp, dtype=dtype, device=device)
        self.before_attention = RMSNorm(hidden, spec.eps, dtype=dtype, device=device)
        self.before_mlp = RMSNorm(hidden, spec.eps, dtype=dtype, device=device)
        self.head_weights = (
            torch.empty(self._turned_heads, spec.head_dim, dtype=dtype, device=device)
            if spec.head_norm
            else None
        )

    def targets(self) -> dict[str, Tensor]:
        """Checkpoint name (below `model.layers.<i>.`) -> the part of our tensors that it fills."""
        result = self.vectors()
        for linear, parts in self.matrices():
            assert linear.weight is not None
            sizes = list(parts.values())
            pieces = zip(parts, linear.weight.split(sizes), strict=True)
            result |= {f"{name}.weight": piece for name, piece in pieces}
            if linear.bias is not None:
                pieces = zip(parts, linear.bias.split(sizes), strict=True)
                result |= {f"{name}.bias": piece for name, piece in pieces}
        return result

    def vectors(self) -> dict[str, Tensor]:
        """Checkpoint name -> the norm that it fills."""
        result = {
            "input_layernorm.weight": self.before_attention.weight,
            "post_attention_layernorm.weight": self.before_mlp.weight,
        }
        if self.head_weights is not None:
            result["self_attn.q_norm.weight"] = self.head_weights[0]
            result["self_attn.k_norm.weight"] = self.head_weights[self._spec.heads]
        return result

    def matrices(self) -> list[tuple[Linear, dict[str, int]]]:
        """Each linear map, with the checkpoint's names of its parts and their rows."""
        spec = self._spec
        query, key, inner = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.intermediate
        attention: list[tuple[Linear, dict[str, int]]] = [
            (self.qkv, {"self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": key}),
            (self.output, {"self_attn.o_proj": spec.hidden}),
        ]
        if self.mixture is not None:
            return attention + self.mixture.matrices()
        return [
            *attention,
            (self.gate_up, {"mlp.gate_proj": inner, "mlp.up_proj": inner}),
            (self.down, {"mlp.down_proj": spec.hidden}),
        ]

    def read(self, name: str, rows: Callable[[Linear], Tensor]) -> Tensor:
        """See `Decoder.read`."""
        vectors = self.vectors()
        if name in vectors:
            return vectors[name]
        part, _, kind = name.rpartition(".")
        for linear, parts in self.matrices():
            if part in parts and (kind == "weight" or (kind == "bias" and linear.bias is not None)):
                whole = rows(linear) if linear.bias is None or kind == "weight" else linear.bias
                return dict(zip(parts, whole.split(list(parts.values())), strict=True))[part]
        raise KeyError(name)

    def seal(self, quantization: Quantization) -> None:
        """The weights are final."""
        if self.head_weights is not None:
            heads = self._spec.heads
            self.head_weights[1:heads] = self.head_weights[0]
            self.head_weights[heads + 1 :] = self.head_weights[heads]
        feed = (self.gate_up, self.down) if self.mixture is None else (self.mixture,)
        for part in (self.qkv, self.output, *feed):
            part.seal(quantization)

    def __call__(
        self,
        x: Tensor,
        rotary: Rotary,
        turned: tuple[Tensor, Tensor],
        attention: StepAttention,
        lora: StepLora | None,
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]; `x` is overwritten."""
        x += self._attend(self.before_attention(x), rotary, turned, attention, lora)
        x += self.feed(self.before_mlp(x), lora)
        return x

    def feed(self, x: Tensor, lora: StepLora | None) -> Tensor:
        """What the feed-forward half makes of normed rows: [T, hidden] -> [T, hidden]."""
        if self.mixture is not None:
            return self.mixture(x)
        gate_up, inner = self.mapped(GATE_UP, self.gate_up, x, lora), self._spec.intermediate
        return self.mapped(
            DOWN, self.down, self._activation(gate_up[:, :inner]).mul_(gate_up[:, inner:]), lora
        )

    def mapped(self, part: int, linear: Linear, x: Tensor, lora: StepLora | None) -> Tensor:
        """A linear map with what the rows' adapters change of it."""
        y = linear(x)
        return y if lora is None else lora.add(self.index * len(PARTS) + part, x, y)

    def _attend(
        self,
        x: Tensor,
        rotary: Rotary,
        turned: tuple[Tensor, Tensor],
        attention: StepAttention,
        lora: StepLora | None,
    ) -> Tensor:
        spec = self._spec
        qkv = self.mapped(QKV, self.qkv, x, lora).view(x.shape[0], -1, spec.head_dim)
        both = qkv[:, : self._turned_heads]
        if self.head_weights is not None:
            both = functional.rms_norm(both, (spec.head_dim,), None, spec.eps) * self.head_weights
        both = rotary.apply(both, turned)
        query, key = both[:, : spec.heads], both[:, spec.heads :]
        out = attention.attend(self.index, query, key, qkv[:, self._turned_heads :], self.attention)
        return self.mapped(OUTPUT, self.output, out.flatten(1), lora)


class Decoder:
    """`gpu.models.base.Model` of the family. Uninitialised: fill `targets()`, then `seal()`."""

    greedy: Greedy | None = None

    def __init__(self, spec: DecoderSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self._quantization = Quantization.NONE
        self.embedding = torch.empty(spec.vocab_size, spec.hidden, dtype=dtype, device=device)
        self.rotary = Rotary(spec.rope, spec.head_dim, dtype, device)
        self.layers = [Layer(spec, index, dtype, device) for index in range(len(spec.windows))]
        self.norm = RMSNorm(spec.hidden, spec.eps, dtype=dtype, device=device)
        self.head = _head(spec, self.embedding)
        self.lora: DecoderSlots = DenseSlots(len(self.layers), spec.modules, dtype, device)

    @property
    def kv(self) -> tuple[KvShape, ...]:
        """See `Model.kv`."""
        return (self.spec.kv,) * len(self.layers)

    @property
    def mixtures(self) -> dict[int, Mixture]:
        """See `Model.mixtures`."""
        return {layer.index: layer.mixture for layer in self.layers if layer.mixture is not None}

    def take_adapters(self, other: Model) -> None:
        """See `Model.take_adapters`."""
        assert isinstance(other, Decoder)
        self.lora = other.lora

    def targets(self, besides: Decoder | None = None) -> dict[str, Tensor]:
        """Checkpoint name -> the part of our tensors that it fills; but for what another decoder shares."""
        result: dict[str, Tensor] = {}
        if besides is None or self.embedding is not besides.embedding:
            result[EMBEDDING] = self.embedding
        if besides is None or self.norm is not besides.norm:
            result[NORM] = self.norm.weight
        if not self.spec.tied and (besides is None or self.head is not besides.head):
            assert self.head.weight is not None
            result[HEAD] = self.head.weight
        for layer in self.layers:
            if besides is None or layer is not besides.layers[layer.index]:
                result |= {f"{layer.prefix}{name}": part for name, part in layer.targets().items()}
        return result

    def wanted(self) -> dict[str, Tensor]:
        """See `Model.wanted`."""
        return Decoder(self.spec, self.embedding.dtype, torch.device("meta")).targets()

    def renewed(self, tensors: Tensors, changed: Collection[str], progress: Callable[[str], None]) -> Decoder:
        """See `Model.renewed`."""
        fresh = self.blank(changed)
        fill(tensors, fresh.targets(self), progress)
        fresh.seal(self._quantization, self)
        return fresh

    def blank(self, changed: Collection[str]) -> Decoder:
        """A decoder that shares with this one all in which no tensor of the names `changed` lies; the rest is
        empty."""
        fresh, dtype, device = copy.copy(self), self.embedding.dtype, self.embedding.device
        if EMBEDDING in changed:
            fresh.embedding = torch.empty_like(self.embedding)
        if NORM in changed:
            fresh.norm = RMSNorm(self.spec.hidden, self.spec.eps, dtype=dtype, device=device)
        if (EMBEDDING if self.spec.tied else HEAD) in changed:
            fresh.head = _head(self.spec, fresh.embedding)
        fresh.layers = [
            Layer(self.spec, layer.index, dtype, device)
            if any(name.startswith(layer.prefix) for name in changed)
            else layer
            for layer in self.layers
        ]
        return fresh

    def read(self, name: str, rows: Callable[[Linear], Tensor] = Linear.rows) -> Tensor:
        """See `Model.read`. rows: tells the [out_features, in_features] of a linear map."""
        match name:
            case "model.embed_tokens.weight":
                return self.embedding
            case "model.norm.weight":
                return self.norm.weight
            case "lm_head.weight":
                return rows(self.head)
        for layer in self.layers:
            if name.startswith(layer.prefix):
                return layer.read(name.removeprefix(layer.prefix), rows)
        raise KeyError(name)

    def linears(self) -> Iterator[Linear]:
        """Every linear map that all rows of a step go through."""
        yield self.head
        for layer in self.layers:
            yield from (layer.qkv, layer.output)
            yield from (layer.gate_up, layer.down) if layer.mixture is None else (layer.mixture.router,)

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """See `Model.parts`."""
        yield from (("embedding", self.embedding), ("norm", self.norm.weight), *self.head.parts("head"))
        for layer in self.layers:
            yield from ((f"{layer.prefix}{name}", vector) for name, vector in layer.vectors().items())
            for linear, pieces in layer.matrices():
                yield from linear.parts(f"{layer.prefix}{'+'.join(pieces)}")

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold `name` without our using it: stored frequencies, a tied head."""
        return name.endswith("rotary_emb.inv_freq") or (self.spec.tied and name == "lm_head.weight")

    def seal(self, quantization: Quantization = Quantization.NONE, like: Decoder | None = None) -> None:
        """The weights are final: lay them out for speed, once; what `like` shares is laid out already."""
        self._quantization = quantization
        for layer in self.layers:
            if like is None or layer is not like.layers[layer.index]:
                layer.seal(quantization)
        if like is None or self.head is not like.head:
            self.head.seal(quantization)

    def forward(self, inputs: Inputs) -> Tensor:
        """See `Model.forward`."""
        lora = None if inputs.adapters is None else self.lora.step(inputs.adapters)
        x = functional.embedding(inputs.tokens, self.embedding)
        turned = self.rotary.turn(inputs.positions)
        for layer in self.layers:
            x = layer(x, self.rotary, turned, inputs.attention, lora)
        if inputs.tap is not None:
            inputs.tap.states = self.norm(x.index_select(0, inputs.tap.rows))
        if inputs.rows is not None:
            x = x.index_select(0, inputs.rows)
        if len(x) == 0:
            return x.new_empty(0, self.spec.vocab_size, dtype=torch.float32)
        return self.head(self.norm(x)).float()


def _head(spec: DecoderSpec, embedding: Tensor) -> Linear:
    """The map to logits: over the embedding where they are tied, else empty."""
    return Linear(
        spec.hidden,
        spec.vocab_size,
        bias=False,
        dtype=embedding.dtype,
        device=embedding.device,
        weight=embedding if spec.tied else None,
    )
