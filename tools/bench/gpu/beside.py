"""The same work through transformers."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import torch

from tools.bench.gpu.driver import requests
from tools.bench.gpu.measure import Sizes


def load(directory: pathlib.Path, device: torch.device) -> Any:
    """The model of a directory."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    return model.to(device).eval()


def batching(model: Any, sizes: Sizes) -> dict[str, float]:
    """Continuous batching of many requests. All get the output that each asks for on average, since a request
    has no length of its own there."""
    import transformers

    count, prompt, output = sizes.workload
    asked = requests(count, prompt, output, model.config.vocab_size)
    most = sum(each.output for each in asked) // len(asked)
    greedy = transformers.GenerationConfig(
        do_sample=False, pad_token_id=0, eos_token_id=-1, max_new_tokens=most
    )
    started = time.perf_counter()
    answers = model.generate_batch(
        [each.prompt for each in asked],
        generation_config=greedy,
        continuous_batching_config=_batching(sizes),
        max_new_tokens=most,
    )
    seconds = time.perf_counter() - started
    tokens = sum(len(answer.generated_tokens) for answer in answers.values())
    return {"seconds": seconds, "tokens_per_second": tokens / seconds}


def _batching(sizes: Sizes) -> Any:
    """Its settings. What they call the size of a page depends on the release."""
    import transformers

    settings = transformers.ContinuousBatchingConfig(**sizes.peer)
    for name in ("page_size", "block_size"):
        if sizes.peer_page and hasattr(settings, name):
            setattr(settings, name, sizes.peer_page)
    return settings


def static(model: Any, sizes: Sizes) -> dict[str, float]:
    """Decode steps of one sequence, by `generate` with a static cache, compiled on a GPU."""
    import transformers

    greedy = transformers.GenerationConfig(
        do_sample=False,
        pad_token_id=0,
        cache_implementation="static",
        disable_compile=model.device.type == "cpu",
        max_new_tokens=sizes.steps,
        min_new_tokens=sizes.steps,
    )
    prompt = torch.full((1, sizes.context), 7, device=model.device)

    def run(steps: int) -> float:
        greedy.max_new_tokens = greedy.min_new_tokens = steps
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy).cpu()
        return time.perf_counter() - started

    run(sizes.steps)
    many, one = run(sizes.steps), run(1)
    return {"milliseconds": (many - one) / (sizes.steps - 1) * 1e3}


WAYS = {"continuous batching": batching, "generate, static cache": static}
