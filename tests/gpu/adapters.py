"""Random LoRA adapters, made and saved by PEFT, and what PEFT says that a model computes with them."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import peft
import torch

from protocols.adapters import Adapter, digest_of
from tests.gpu.driver import Output
from tests.gpu.tiny import Tiny

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Oracle:
    """A tiny model in PEFT. Adapters have names; ids count from 1."""

    def __init__(self, tiny: Tiny, path: pathlib.Path) -> None:
        self._tiny, self._path = tiny, path
        self._model: Any = None
        self.adapters: list[Adapter] = []

    def add(self, name: str, **settings: Any) -> Adapter:
        """A random adapter, saved by PEFT. settings: of its LoraConfig."""
        config = peft.LoraConfig(**({"target_modules": MODULES, "init_lora_weights": False} | settings))
        torch.manual_seed(len(self.adapters) + 1)
        if self._model is None:
            self._model = peft.get_peft_model(self._tiny.reference, config, adapter_name=name)
        else:
            self._model.add_adapter(name, config)
        self._model.eval()
        self._model.save_pretrained(self._path, selected_adapters=[name])
        folder = self._path / name
        adapter = Adapter(len(self.adapters) + 1, name, str(folder), digest_of(folder))
        self.adapters.append(adapter)
        return adapter

    def check(self, name: str, prompt: Sequence[int], output: Output, tolerance: float = 2e-4) -> None:
        """`Tiny.check` of a sequence that went through an adapter, "" for none."""
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens = torch.tensor([[*prompt, *output.tokens[:-1]]])
            if name:
                self._model.set_adapter(name)
                logits = self._model(input_ids=tokens, use_cache=False).logits
            else:
                with self._model.disable_adapter():
                    logits = self._model(input_ids=tokens, use_cache=False).logits
        logprobs = logits[0].float()[len(prompt) - 1 :].log_softmax(-1)
        best = logprobs.topk(2).values
        for row, (token, told) in enumerate(zip(output.tokens, output.logprobs, strict=True)):
            near = float(best[row, 0] - logprobs[row, token])
            assert near < tolerance, f"{name}: token {row} is not the most likely one, by {near}"
            assert abs(told.chosen - float(logprobs[row, token])) < tolerance
