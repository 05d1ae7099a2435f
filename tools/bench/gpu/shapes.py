"""Models of published shapes with random weights: nothing but their headers is written to disk."""

from __future__ import annotations

import json
import pathlib
import struct
from typing import Any

import torch

from gpu.models.base import Model
from gpu.models.llama import Decoder
from gpu.models.spec import DecoderSpec, read_spec

_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "hidden_act": "silu",
    "dtype": "bfloat16",
}


def _qwen3(hidden: int, inner: int, layers: int, heads: int, *, tied: bool = False) -> dict[str, Any]:
    return _QWEN3 | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": tied,
    }


SHAPES = {
    "smallest": _qwen3(64, 96, 2, 4) | {"vocab_size": 512, "num_key_value_heads": 2, "head_dim": 16},
    "0.6b": _qwen3(1024, 3072, 28, 16, tied=True),
    "8b": _qwen3(4096, 12288, 36, 32),
    "14b": _qwen3(5120, 17408, 40, 40),
}
"""config.json by name; all but the smallest are those of Qwen3."""


def spec_of(shape: str) -> DecoderSpec:
    """The decoder of a shape."""
    return read_spec("Qwen3ForCausalLM", SHAPES[shape])


def write(directory: pathlib.Path, shape: str) -> None:
    """A model directory whose weights are zeros that take no room: holes in a file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(SHAPES[shape]))
    targets = Decoder(spec_of(shape), torch.bfloat16, torch.device("meta")).targets()
    entries, end = {}, 0
    for name, target in targets.items():
        begin, end = end, end + target.nbytes
        entries[name] = {"dtype": "BF16", "shape": list(target.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)


@torch.inference_mode()
def randomise(model: Model) -> None:
    """Weights as a fresh model has them: norms of one, matrices of a spread that keeps numbers finite."""
    for name, tensor in model.parts():
        if tensor.ndim == 1 or "norm" in name:
            tensor.fill_(1.0)
        else:
            tensor.normal_(0.0, tensor.shape[-1] ** -0.5)


def weight_bytes(spec: DecoderSpec, itemsize: int) -> int:
    """Bytes of weights that one decode step reads: all but the embedding's, of which it reads a few rows."""
    return _matrix_elements(spec) * itemsize


def _matrix_elements(spec: DecoderSpec) -> int:
    attention = spec.hidden * spec.head_dim * (2 * spec.heads + 2 * spec.kv_heads)
    layer = attention + 3 * spec.hidden * spec.intermediate
    return len(spec.windows) * layer + spec.vocab_size * spec.hidden


def kv_bytes(spec: DecoderSpec, itemsize: int) -> int:
    """Bytes of keys and values of one token in all layers."""
    return len(spec.windows) * spec.kv.elements * itemsize


def prefill_operations(spec: DecoderSpec, tokens: int) -> float:
    """Multiplications and additions of one prompt: matrices for every token, the head for the last, causal
    attention."""
    head = spec.vocab_size * spec.hidden
    matrices = 2.0 * tokens * (_matrix_elements(spec) - head) + 2.0 * head
    attention = len(spec.windows) * 2.0 * spec.heads * spec.head_dim * tokens * (tokens + 1)
    return matrices + attention
