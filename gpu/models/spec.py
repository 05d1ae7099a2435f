"""What shapes a decoder of the Llama family, read from its config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gpu.kv_pool import KvShape
from gpu.layers import ACTIVATIONS
from gpu.lora.base import PARTS, shapes
from gpu.models.mixture import MixtureSpec, read_mixture
from gpu.rotary import rope_parameters
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
    mixture: MixtureSpec | None = None

    @property
    def kv(self) -> KvShape:
        """What each layer keeps of a token."""
        return KvShape(self.kv_heads, self.head_dim, self.head_dim)

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """(n, k) of every linear map that an adapter may change, by name; those of attention in a mixture."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = (query, key, key, self.hidden, self.intermediate, self.intermediate, self.hidden)
        columns = (self.hidden,) * 3 + (query, self.hidden, self.hidden, self.intermediate)
        names = (name for part in PARTS for name in part)
        sizes = dict(zip(names, zip(rows, columns, strict=True), strict=True))
        if self.mixture is not None:
            sizes = {name: size for name, size in sizes.items() if name.startswith("self_attn.")}
        return shapes(len(self.windows), sizes)


def read_spec(architecture: str, config: Json) -> DecoderSpec:
    """The spec of a config.json. StartError names the field that is missing or not supported."""
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    layers = _size(config, "num_hidden_layers")
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
        head_norm=architecture in ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
        windows=_windows(architecture, config, layers),
        tied=bool(config.get("tie_word_embeddings", False)),
        rope=rope_parameters(config),
        mixture=read_mixture(config, layers) if architecture == "Qwen3MoeForCausalLM" else None,
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
        case "Qwen3ForCausalLM" | "Qwen3MoeForCausalLM":
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
        case "Qwen3MoeForCausalLM" if config.get("use_sliding_window"):
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
