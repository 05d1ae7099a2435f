"""Writes a Llama or Qwen3 directory as one bfloat16 GGUF file, with the `gguf` package alone."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

Tensors = dict[str, np.ndarray[Any, Any]]
_OUTER = {"embed_tokens": "token_embd", "norm": "output_norm"}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def convert(directory: pathlib.Path) -> pathlib.Path:
    """`model.gguf` inside `directory`, written if it is not there yet."""
    path = directory / "model.gguf"
    if path.exists():
        return path
    config = json.loads((directory / "config.json").read_text())
    unfinished = path.with_suffix(f".{os.getpid()}")
    writer = gguf.GGUFWriter(unfinished, config["model_type"])
    _describe(writer, config)
    _add_tokenizer(writer, json.loads((directory / "tokenizer.json").read_text()), config)
    for name, tensor in _read(directory / "model.safetensors"):
        _add_tensor(writer, name, tensor, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)
    return path


def _describe(writer: Any, config: dict[str, Any]) -> None:
    writer.add_name(config["model_type"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if index in special else normal for index in range(len(vocabulary))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _read(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Names and bfloat16 tensors, as uint16 views of the file."""
    data = np.memmap(path, np.uint8, "r")
    size = int(data[:8].view("<u8")[0])
    for name, entry in json.loads(bytes(data[8 : 8 + size])).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            yield name, data[8 + size + start : 8 + size + end].view("<u2").reshape(entry["shape"])


def _add_tensor(writer: Any, name: str, tensor: np.ndarray[Any, Any], config: dict[str, Any]) -> None:
    """Norms become float32; of a Llama, llama.cpp wants the pairs that it rotates side by side."""
    parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
    target = f"blk.{parts[1]}.{_INNER[parts[2]]}" if parts[0] == "layers" else _OUTER[parts[0]]
    if tensor.ndim == 1:
        writer.add_tensor(f"{target}.weight", (tensor.astype("<u4") << 16).view("<f4"))
        return
    if config["model_type"] == "llama" and target.endswith(("attn_q", "attn_k")):
        heads = len(tensor) // config["head_dim"]
        tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
    raw = np.ascontiguousarray(tensor).view(np.uint8)
    writer.add_tensor(f"{target}.weight", raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
