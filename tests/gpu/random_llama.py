"""A random model on disk whose logits are far apart, so that no two are within rounding of each other."""

from __future__ import annotations

import pathlib
from typing import Any

from protocols.config import ModelCard, read_model_card


def random_llama(directory: pathlib.Path, **settings: Any) -> ModelCard:
    """Two layers of `hidden_size` 32 with `settings` laid over; the same one each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.4,
    }
    LlamaForCausalLM(LlamaConfig(**(sizes | settings))).eval().save_pretrained(directory)
    return read_model_card(directory)
