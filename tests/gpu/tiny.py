"""Tiny random models of any architecture, on disk, and what transformers says they compute."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from gpu.executor import Executor
from gpu.loading import load_executor
from protocols.config import Config, read_model_card
from tests.gpu.driver import Output

VOCAB = 256
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "dtype": "float32",
}


@dataclasses.dataclass
class Tiny:
    """A model directory, and the same model in transformers."""

    path: pathlib.Path
    reference: Any

    def executor(self, **options: Any) -> Executor:
        """Our executor on the directory, float32 on one CPU thread unless told otherwise."""
        return load_executor(self.config(**options), lambda _: None)

    def config(self, **options: Any) -> Config:
        """A config with small pages, so that sequences take several. max_model_len: of the model card."""
        defaults: dict[str, Any] = {"pages": 96, "page_size": 4, "max_running": 8, "threads": 1}
        defaults |= {"dtype": "float32", "device": "cpu"}
        card = read_model_card(self.path, max_model_len=options.pop("max_model_len", 0))
        return Config(model=card, **(defaults | options))

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[len(tokens), vocab] float32 logits of transformers, no cache."""
        with torch.inference_mode():
            out = self.reference(input_ids=torch.tensor([list(tokens)]), use_cache=False)
        return out.logits[0].float()

    def check(self, prompt: Sequence[int], output: Output, tolerance: float = 1e-4) -> None:
        """`output` is the greedy continuation of `prompt`, and its logprobs are the model's.

        Each token is compared with the most likely one after all tokens before it, so by induction this
        is equality with greedy generation.
        """
        logprobs = self.logits([*prompt, *output.tokens[:-1]])[len(prompt) - 1 :].log_softmax(-1)
        assert output.tokens == logprobs.argmax(-1).tolist()
        chosen = logprobs.max(-1).values.numpy()
        for got, want, row in zip(output.logprobs, chosen, logprobs, strict=True):
            assert abs(got.chosen - want) < tolerance
            assert np.allclose(got.values, row[list(got.ids)], atol=tolerance)


def make(path: pathlib.Path, architecture: str, seed: int = 0, **settings: Any) -> Tiny:
    """A random model of a transformers class. Biases and norms are random too, lest they go unseen."""
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**(_SIZES | settings), architectures=[architecture])
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = model_class(config).eval()
    randomise(model)
    model.save_pretrained(path)
    return Tiny(path, model)


@torch.no_grad()
def randomise(model: Any) -> None:
    """Random values for all parameters, of a spread that keeps the logits apart."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "bias" not in name:
            parameter.normal_(1.0, 0.2)
        elif parameter.ndim == 1:
            parameter.normal_(0.0, 0.2)
        else:
            parameter.normal_(0.0, 2.0 / parameter.shape[-1] ** 0.5)


def prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Random prompts of the given lengths."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCAB, length).tolist() for length in lengths]
