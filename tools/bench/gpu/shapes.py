"""Models of published shapes with random weights: nothing but their headers is written to disk."""

from __future__ import annotations

import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

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


def write(directory: pathlib.Path, shape: str, *, random: bool = False) -> None:
    """A model directory. Its weights are zeros that take no room, holes in a file; or `random`, a block of
    numbers over and over, and then there is a tokenizer too: for a company, which reads what is there."""
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
        if random:
            _scatter(file, 8 + len(header), targets)
    if random:
        _write_tokenizer(directory, SHAPES[shape]["vocab_size"])


def _scatter(file: BinaryIO, start: int, targets: Mapping[str, torch.Tensor]) -> None:
    """Norms of one, and matrices of small numbers."""
    torch.manual_seed(0)
    block = bytes((torch.randn(1 << 23) * 0.02).bfloat16().view(torch.uint8).numpy().data)
    ones = bytes(torch.ones(1 << 16, dtype=torch.bfloat16).view(torch.uint8).numpy().data)
    file.seek(start)
    for target in targets.values():
        pattern = memoryview(ones if target.ndim == 1 else block)
        left = target.nbytes
        while left:
            left -= file.write(pattern[:left])


def _write_tokenizer(directory: pathlib.Path, vocab_size: int) -> None:
    """A token for each byte, and words that no text has for the rest of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate(alphabet)}
    vocab |= {f"\u0120w{number:06d}": number for number in range(len(alphabet), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@torch.inference_mode()
def randomise(model: Decoder) -> None:
    """Weights as a fresh model has them, before it is sealed: norms of one, matrices of a spread that keeps
    numbers finite."""
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
