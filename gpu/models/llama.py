"""The Llama / Mistral / Qwen2 / Qwen3 family: one decoder, composed by its config.

    x -> RMSNorm -> qkv (+bias) -> [RMSNorm of each q and k head] -> RoPE -> attention -> o -> + x
      -> RMSNorm -> act(gate) * up -> down -> + x

The members differ in which biases there are, whether query and key heads are normalised, and which layers
look through a sliding window. q, k and v are one matrix, gate and up another; the checkpoint's
tensors are views of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gpu.attention import Spec, StepAttention
from gpu.kv_pool import KvShape
from gpu.layers import ACTIVATIONS, Linear, RMSNorm
from gpu.models.base import Tap
from gpu.rotary import Rotary, rope_parameters
from protocols.errors import StartError

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Biases:
    """Which linear maps have one."""

    qkv: bool
    output: bool
    mlp: bool


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Everything that shapes the decoder. windows: for each layer, 0 = none."""

    vocab_size: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    activation: str
    biases: Biases
    head_norm: bool
    windows: tuple[int, ...]
    tied: bool
    rope: Json

    @property
    def kv(self) -> KvShape:
        """What each layer keeps of a token."""
        return KvShape(self.kv_heads, self.head_dim, self.head_dim)


def read_spec(architecture: str, config: Json) -> DecoderSpec:
    """The spec of a config.json. StartError names the field that is missing or not supported."""
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise StartError(f"config.json: hidden_act {activation!r} is not supported.")
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise StartError(f"config.json: {heads} attention heads do not divide among {kv_heads} KV heads.")
    return DecoderSpec(
        vocab_size=_size(config, "vocab_size"),
        hidden=hidden,
        intermediate=_size(config, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.get("head_dim") or _default_head_dim(architecture, hidden, heads),
        eps=float(config.get("rms_norm_eps", 1e-6)),
        activation=activation,
        biases=_biases(architecture, config),
        head_norm=architecture == "Qwen3ForCausalLM",
        windows=_windows(architecture, config, _size(config, "num_hidden_layers")),
        tied=bool(config.get("tie_word_embeddings", False)),
        rope=rope_parameters(config),
    )


def _size(config: Json, name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value <= 0:
        raise StartError(f"config.json: {name} must be a positive integer, not {value!r}.")
    return value


def _default_head_dim(architecture: str, hidden: int, heads: int) -> int:
    return 128 if architecture == "Qwen3ForCausalLM" else hidden // heads


def _biases(architecture: str, config: Json) -> Biases:
    attention = bool(config.get("attention_bias", False))
    match architecture:
        case "Qwen2ForCausalLM":
            return Biases(qkv=True, output=False, mlp=False)
        case "Qwen3ForCausalLM":
            return Biases(qkv=attention, output=attention, mlp=False)
        case "LlamaForCausalLM":
            return Biases(qkv=attention, output=attention, mlp=bool(config.get("mlp_bias", False)))
        case _:
            return Biases(qkv=False, output=False, mlp=False)


def _windows(architecture: str, config: Json, layers: int) -> tuple[int, ...]:
    window = config.get("sliding_window") or 0
    match architecture:
        case "MistralForCausalLM":
            return (window,) * layers
        case "Qwen2ForCausalLM" | "Qwen3ForCausalLM" if window and config.get("use_sliding_window"):
            types = config.get("layer_types")
            if types is None:
                first = config.get("max_window_layers", 28)
                return tuple(window if layer >= first else 0 for layer in range(layers))
            if len(types) != layers:
                raise StartError(f"config.json: layer_types names {len(types)} layers, not {layers}.")
            return tuple(window if kind == "sliding_attention" else 0 for kind in types)
        case _:
            return (0,) * layers


class Layer:
    """One decoder layer."""

    def __init__(self, spec: DecoderSpec, index: int, dtype: torch.dtype, device: torch.device) -> None:
        self.index, self._spec = index, spec
        self._attention = Spec(scale=spec.head_dim**-0.5, window=spec.windows[index])
        self._activation = ACTIVATIONS[spec.activation]
        self._turned_heads = spec.heads + spec.kv_heads
        wide, width = spec.heads * spec.head_dim, (spec.heads + 2 * spec.kv_heads) * spec.head_dim
        hidden, inner, biases = spec.hidden, spec.intermediate, spec.biases
        self.qkv = Linear(hidden, width, bias=biases.qkv, dtype=dtype, device=device)
        self.output = Linear(wide, hidden, bias=biases.output, dtype=dtype, device=device)
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
        spec = self._spec
        query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        result = {
            "input_layernorm.weight": self.before_attention.weight,
            "post_attention_layernorm.weight": self.before_mlp.weight,
        }
        result |= _parts("self_attn", self.qkv, {"q_proj": query, "k_proj": key, "v_proj": key})
        result |= _parts("self_attn", self.output, {"o_proj": spec.hidden})
        result |= _parts("mlp", self.gate_up, {"gate_proj": spec.intermediate, "up_proj": spec.intermediate})
        result |= _parts("mlp", self.down, {"down_proj": spec.hidden})
        if self.head_weights is not None:
            result["self_attn.q_norm.weight"] = self.head_weights[0]
            result["self_attn.k_norm.weight"] = self.head_weights[spec.heads]
        return result

    def seal(self) -> None:
        """The weights are final."""
        if self.head_weights is not None:
            heads = self._spec.heads
            self.head_weights[1:heads] = self.head_weights[0]
            self.head_weights[heads + 1 :] = self.head_weights[heads]
        for linear in (self.qkv, self.output, self.gate_up, self.down):
            linear.seal()

    def __call__(
        self, x: Tensor, rotary: Rotary, turned: tuple[Tensor, Tensor], attention: StepAttention
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]; `x` is overwritten."""
        x += self._attend(self.before_attention(x), rotary, turned, attention)
        gate_up = self.gate_up(self.before_mlp(x))
        inner = self._spec.intermediate
        x += self.down(self._activation(gate_up[:, :inner]).mul_(gate_up[:, inner:]))
        return x

    def _attend(
        self, x: Tensor, rotary: Rotary, turned: tuple[Tensor, Tensor], attention: StepAttention
    ) -> Tensor:
        spec = self._spec
        qkv = self.qkv(x).view(x.shape[0], -1, spec.head_dim)
        both = qkv[:, : self._turned_heads]
        if self.head_weights is not None:
            both = functional.rms_norm(both, (spec.head_dim,), None, spec.eps) * self.head_weights
        both = rotary.apply(both, turned)
        query, key = both[:, : spec.heads], both[:, spec.heads :]
        out = attention.attend(self.index, query, key, qkv[:, self._turned_heads :], self._attention)
        return self.output(out.flatten(1))


def _parts(prefix: str, linear: Linear, parts: dict[str, int]) -> dict[str, Tensor]:
    """The row ranges of a fused linear map that the named checkpoint tensors fill."""
    assert linear.weight is not None
    sizes = list(parts.values())
    names = [f"{prefix}.{name}" for name in parts]
    result = {f"{name}.weight": part for name, part in zip(names, linear.weight.split(sizes), strict=True)}
    if linear.bias is not None:
        result |= {f"{name}.bias": part for name, part in zip(names, linear.bias.split(sizes), strict=True)}
    return result


class Decoder:
    """`gpu.models.base.Model` of the family. Uninitialised: fill `targets()`, then `seal()`."""

    def __init__(self, spec: DecoderSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self.embedding = torch.empty(spec.vocab_size, spec.hidden, dtype=dtype, device=device)
        self.rotary = Rotary(spec.rope, spec.head_dim, dtype, device)
        self.layers = [Layer(spec, index, dtype, device) for index in range(len(spec.windows))]
        self.norm = RMSNorm(spec.hidden, spec.eps, dtype=dtype, device=device)
        self.head = Linear(
            spec.hidden,
            spec.vocab_size,
            bias=False,
            dtype=dtype,
            device=device,
            weight=self.embedding if spec.tied else None,
        )

    @property
    def kv(self) -> tuple[KvShape, ...]:
        """See `Model.kv`."""
        return (self.spec.kv,) * len(self.layers)

    def targets(self) -> dict[str, Tensor]:
        """Checkpoint name -> the part of our tensors that it fills."""
        result = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm.weight}
        if not self.spec.tied:
            assert self.head.weight is not None
            result["lm_head.weight"] = self.head.weight
        for layer in self.layers:
            result |= {f"model.layers.{layer.index}.{name}": part for name, part in layer.targets().items()}
        return result

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold `name` without our using it: stored frequencies, a tied head."""
        return name.endswith("rotary_emb.inv_freq") or (self.spec.tied and name == "lm_head.weight")

    def seal(self) -> None:
        """The weights are final: lay them out for speed."""
        for layer in self.layers:
            layer.seal()
        self.head.seal()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attention: StepAttention,
        rows: Tensor | None,
        tap: Tap | None = None,
    ) -> Tensor:
        """See `Model.forward`."""
        x = functional.embedding(tokens, self.embedding)
        turned = self.rotary.turn(positions)
        for layer in self.layers:
            x = layer(x, self.rotary, turned, attention)
        if tap is not None:
            tap.states = self.norm(x.index_select(0, tap.rows))
        if rows is not None:
            x = x.index_select(0, rows)
        if len(x) == 0:
            return x.new_empty(0, self.spec.vocab_size, dtype=torch.float32)
        return self.head(self.norm(x)).float()
