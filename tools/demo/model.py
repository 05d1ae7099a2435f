"""The demo model's shape, and how it is written out for serving."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from tools.demo.tokenizer import BOS, CONTEXT, END, PAD, VOCAB_SIZE


def shape(tiny: bool = False) -> LlamaConfig:
    """The configuration; `tiny` is one to try the whole pipeline with in seconds."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64 if tiny else 256,
        intermediate_size=176 if tiny else 688,
        num_hidden_layers=2 if tiny else 5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16 if tiny else 64,
        max_position_embeddings=CONTEXT,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        use_cache=True,
    )


def build(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A model with seeded random weights, in float32."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def export(
    model: LlamaForCausalLM,
    weights: dict[str, torch.Tensor],
    tokenizer: Tokenizer,
    folder: Path,
) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` (bfloat16)."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    stops = [ids["eos_token_id"], ids["bos_token_id"]]
    _write_json(folder / "config.json", _config(model.config) | ids)
    _write_json(folder / "generation_config.json", ids | {"eos_token_id": stops})
    tensors = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in weights.items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _config(config: LlamaConfig) -> dict[str, object]:
    """What loaders of every age need, and nothing that depends on who wrote it."""
    kept = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "initializer_range",
        "rms_norm_eps",
        "attention_bias",
        "attention_dropout",
        "mlp_bias",
        "tie_word_embeddings",
        "use_cache",
    )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "rope_theta": 10000.0,
        **{name: getattr(config, name) for name in kept},
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
