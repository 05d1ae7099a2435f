"""The native family against transformers: same tokens, same logprobs, for every variant of its configs."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from gpu.executor import Executor
from gpu.models.llama import Decoder
from protocols.config import KernelChoice
from tests.gpu.driver import GREEDY, Driver
from tests.gpu.tiny import Tiny, make, prompts

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 5000.0}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500.0,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-multi-query": ("LlamaForCausalLM", {"num_key_value_heads": 1}),
    "llama-multi-head": ("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "llama-head-dim": ("LlamaForCausalLM", {"head_dim": 32}),
    "llama-gelu-eps": ("LlamaForCausalLM", {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2}),
    "llama-rope-theta": ("LlamaForCausalLM", {"rope_parameters": {"rope_theta": 100.0}}),
    "llama-rope-linear": ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "llama-rope-dynamic": ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0}}),
    "llama-rope-llama3": ("LlamaForCausalLM", {"rope_parameters": _LLAMA3}),
    "llama-rope-yarn": ("LlamaForCausalLM", {"rope_parameters": _YARN}),
    "llama-rope-yarn-factor": ("LlamaForCausalLM", {"rope_parameters": _YARN | {"attention_factor": 0.7}}),
    "llama-rope-yarn-mscale": (
        "LlamaForCausalLM",
        {
            "rope_parameters": _YARN
            | {"mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False, "beta_fast": 4}
        },
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 6}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2-tied": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3-head-dim": ("Qwen3ForCausalLM", {"head_dim": 48, "attention_bias": True}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", {"head_dim": 16, **_MOE}),
    "qwen3-moe-partly": (
        "Qwen3MoeForCausalLM",
        {"head_dim": 24, **_MOE, "mlp_only_layers": [1], "norm_topk_prob": True, "num_hidden_layers": 3},
    ),
    "qwen3-window": (
        "Qwen3ForCausalLM",
        {
            "head_dim": 32,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention"],
            "tie_word_embeddings": True,
        },
    ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One variant."""
    architecture, settings = VARIANTS[request.param]
    return make(tmp_path_factory.mktemp(request.param), architecture, **settings)


@pytest.fixture(scope="module", params=[KernelChoice.AUTO, KernelChoice.TORCH])
def executor(request: pytest.FixtureRequest, tiny: Tiny) -> Executor:
    """The variant's executor, with either kernels; drivers follow one another on it."""
    loaded = tiny.executor(kernels=request.param)
    ours = request.param is KernelChoice.AUTO and isinstance(loaded._model, Decoder)
    if ours and loaded._model.spec.mixture is None:
        pytest.skip("there are no CPU kernels on this machine")
    return loaded


PROMPTS = prompts(1, 5, 33, 12, 18)


def test_whole_prompts_give_the_tokens_of_transformers(tiny: Tiny, executor: Executor) -> None:
    outputs = Driver(executor, budget=256).generate(PROMPTS, 10)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        tiny.check(prompt, output)


def test_chunks_smaller_than_the_prompts_under_overlap(tiny: Tiny, executor: Executor) -> None:
    driver = Driver(executor, budget=7, depth=2)
    for prompt, output in zip(PROMPTS, driver.generate(PROMPTS, 10), strict=True):
        tiny.check(prompt, output)
    assert any(len(chunk.tokens) < 4 * 7 for plan in driver.plans for chunk in plan.chunks)


def test_a_prefix_served_from_shared_pages(tiny: Tiny, executor: Executor) -> None:
    driver = Driver(executor, share=True)
    driver.generate([PROMPTS[2]], 4)
    family = [[*PROMPTS[2][:size], 7, size] for size in (32, 20, 9)]
    outputs = driver.generate(family, 8)
    assert [opening.cached for plan in driver.plans for opening in plan.opens] == [0, 32, 20, 8]
    for prompt, output in zip(family, outputs, strict=True):
        tiny.check(prompt, output)


def test_generate_of_transformers_agrees(tmp_path: pathlib.Path) -> None:
    """The induction of `Tiny.check` against the real thing, once."""
    tiny = make(tmp_path, "LlamaForCausalLM")
    prompt = prompts(11)[0]
    output = Driver(tiny.executor()).generate([prompt], 20, GREEDY)[0]
    theirs = tiny.reference.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 11), max_new_tokens=20, do_sample=False
    )
    assert output.tokens == theirs[0, 11:].tolist()
