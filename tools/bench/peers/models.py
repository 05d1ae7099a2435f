"""The models that engines are compared on: exact shapes, random bfloat16 weights, made once and kept.

`qwen3` has the shape of Qwen3-0.6B; `llama15m` is a Llama of 14.5 million weights. The same directory is
read by every engine; llama.cpp's GGUF file is written into it by its own runner.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from tools.bench.peers import tokenizer

_COMMON = {
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": _COMMON
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "use_sliding_window": False,
        "rope_theta": 1000000,
    },
    "llama15m": _COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "rope_theta": 10000.0,
    },
}
"""config.json by name."""
TITLES = {"qwen3": "Qwen3-0.6B shape", "llama15m": "15M Llama"}


def default_cache() -> pathlib.Path:
    """Where models are kept unless the user says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "troupe" / "bench"


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the checkpoint's tensors. One dimension means a norm's weight."""
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        if config["model_type"] == "qwen3":
            parts |= {"self_attn.q_norm": (size,), "self_attn.k_norm": (size,)}
        for name, shape in parts.items():
            yield f"model.layers.{layer}.{name}.weight", shape


def make(name: str, cache: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """The directory of the model `name`, written if it is not there yet."""
    return write(SHAPES[name], cache / f"{name}-{seed}", seed)


def write(config: dict[str, Any], folder: pathlib.Path, seed: int) -> pathlib.Path:
    """Write a model of this shape to `folder`, whole or not at all; nothing where there is one already."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _write_weights(config, unfinished / "model.safetensors", seed)
        tokenizer.save(config["vocab_size"], config["max_position_embeddings"], unfinished)
        (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    return folder


def _write_weights(config: dict[str, Any], path: pathlib.Path, seed: int) -> None:
    """Layers keep the size of what goes through them, so that they outweigh the embedding: with smaller
    weights and a tied head a random model only repeats its last token."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in tensors(config):
        weight = torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 2:
            deviation = config["initializer_range"] if "embed" in name else shape[1] ** -0.5
            weight.normal_(0, deviation, generator=generator)
        weights[name] = weight
    save_file(weights, path, metadata={"format": "pt"})
