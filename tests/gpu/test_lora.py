"""LoRA against PEFT: same tokens, same logprobs, for every family, with many adapters in one batch."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from gpu.executor import Executor
from gpu.models.llama import Decoder
from protocols.adapters import Adapter
from protocols.config import KernelChoice, Quantization
from tests.gpu.adapters import Oracle
from tests.gpu.driver import Driver
from tests.gpu.tiny import Tiny, make, prompts

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 6, "head_dim": 24}),
    "qwen2": ("Qwen2ForCausalLM", {"num_hidden_layers": 3}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 48, "intermediate_size": 90}),
}
MIXED: dict[str, dict[str, Any]] = {
    "small": {"r": 1, "lora_alpha": 3},
    "stable": {"r": 6, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layers.0.self_attn.q_proj": 9, "down_proj": 2},
        "alpha_pattern": {r"^model\.layers\.1\.mlp\.gate_proj": 2, "v_proj": 30},
    },
    "attention": {"r": 17, "lora_alpha": 9, "target_modules": ["q_proj", "v_proj"]},
    "one-layer": {"r": 5, "target_modules": ["up_proj", "o_proj"], "layers_to_transform": [1]},
}
PROMPTS = prompts(1, 5, 33, 12, 18, 7)


@pytest.fixture(scope="module", params=FAMILIES)
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """A model of a family, with adapters of all sorts."""
    architecture, settings = FAMILIES[request.param]
    path = tmp_path_factory.mktemp(request.param)
    found = Oracle(make(path / "model", architecture, **settings), path / "adapters")
    for name, shape in MIXED.items():
        found.add(name, **shape)
    return found


def executor(tiny: Tiny, kernels: KernelChoice, adapters: list[Adapter], **options: Any) -> Executor:
    """With these adapters loaded."""
    loaded = tiny.executor(kernels=kernels, **options)
    if kernels is KernelChoice.AUTO and isinstance(loaded._model, Decoder):
        pytest.skip("there are no CPU kernels on this machine")
    assert not loaded.adapters.set(adapters)
    return loaded


@pytest.mark.parametrize("kernels", KernelChoice)
def test_a_batch_through_all_sorts_of_adapters_gives_the_tokens_of_peft(
    oracle: Oracle, kernels: KernelChoice
) -> None:
    driver = Driver(executor(oracle._tiny, kernels, oracle.adapters), budget=23, depth=2)
    asked = [(name, adapter) for adapter, name in enumerate(("", *MIXED))]
    running = [driver.submit(PROMPTS[i], 8, adapter=adapter) for i, (_, adapter) in enumerate(asked)]
    while driver.turn():
        pass
    for (name, _), sequence in zip(asked, running, strict=True):
        oracle.check(name, sequence.prompt, sequence.output)
    assert len({tuple(sequence.output.tokens) for sequence in running}) == len(running)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """A model with 32 adapters."""
    path = tmp_path_factory.mktemp("crowd")
    found = Oracle(make(path / "model", "LlamaForCausalLM"), path / "adapters")
    for number in range(1, 33):
        found.add(f"a{number}", r=1 + number % 9, lora_alpha=8)
    return found


@pytest.mark.parametrize("kernels", KernelChoice)
def test_32_adapters_16_in_one_batch_each_exact(crowd: Oracle, kernels: KernelChoice) -> None:
    options: dict[str, Any] = {"max_loras": 16, "max_running": 16, "pages": 256}
    driver = Driver(executor(crowd._tiny, kernels, crowd.adapters, **options), budget=64)
    texts = prompts(*(3 + number % 11 for number in range(32)))
    running = [driver.submit(text, 6, adapter=1 + number) for number, text in enumerate(texts)]
    while driver.turn():
        pass
    assert max(len(plan.decodes) // 4 for plan in driver.plans) == 16
    for number, sequence in enumerate(running):
        crowd.check(f"a{number + 1}", sequence.prompt, sequence.output)


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": Quantization.INT8}],
    ids=["float32", "bfloat16", "int8"],
)
def test_on_the_kernels_the_bits_depend_on_nobody_else(crowd: Oracle, options: dict[str, Any]) -> None:
    options = {"max_loras": 16, "max_running": 16, "pages": 256, "threads": 2, **options}
    loaded = executor(crowd._tiny, KernelChoice.AUTO, crowd.adapters, **options)
    text = PROMPTS[2]

    def logprobs(adapter: int, others: list[int], budget: int) -> list[float]:
        driver = Driver(loaded, budget=budget)
        driver.epoch = logprobs.epoch = logprobs.epoch + 1  # type: ignore[attr-defined]
        first = [driver.submit(PROMPTS[1], 12, adapter=other) for other in others[::2]]
        mine = driver.submit(text, 12, adapter=adapter)
        first += [driver.submit(PROMPTS[3], 12, adapter=other) for other in others[1::2]]
        while driver.turn():
            pass
        return [told.chosen for told in mine.output.logprobs]

    logprobs.epoch = 1  # type: ignore[attr-defined]
    alone = logprobs(3, [], 64)
    assert logprobs(3, [], 5) == alone
    assert logprobs(3, [3, 3, 3, 3, 3], 64) == alone
    assert logprobs(3, [0, 7, 1, 3, 0, 9, 12, 3, 8, 31], 17) == alone
    assert logprobs(0, [0, 7, 1, 3], 17) == logprobs(0, [], 64) != alone


def test_an_adapter_that_cannot_be_read_again_fails_its_requests_alone(
    crowd: Oracle, tmp_path: pathlib.Path
) -> None:
    gone = Adapter(40, "gone", str(tmp_path / "nothing"), "")
    changed = Adapter(41, "changed", crowd.adapters[0].path, "another digest")
    loaded = crowd._tiny.executor()
    assert loaded.adapters.set([*crowd.adapters[:2], gone, changed]).keys() == {40, 41}
    driver = Driver(loaded)
    running = [driver.submit(PROMPTS[1], 5, adapter=adapter) for adapter in (2, 40, 41, 42, 0)]
    while driver.turn():
        pass
    good, *failed, base = running
    crowd.check("a2", good.prompt, good.output)
    crowd.check("", base.prompt, base.output)
    words = ("there is no adapter directory", "have changed since it was loaded", "was unloaded")
    for sequence, word in zip(failed, words, strict=True):
        assert word in sequence.output.failure and not sequence.output.tokens


def test_models_that_run_through_transformers_take_no_adapters(tmp_path: pathlib.Path) -> None:
    tiny = make(tmp_path / "model", "GPT2LMHeadModel", n_embd=32, n_layer=1, n_head=2, n_positions=64)
    loaded = tiny.executor()
    told = loaded.adapters.set([Adapter(1, "a", str(tmp_path), "")])
    assert "adapters need a model of the Llama" in told[1]


def test_gpu_path_in_sixteen_bits_is_near_peft(crowd: Oracle) -> None:
    """torch's operations in bfloat16: the change is added in the base's precision."""
    loaded = executor(crowd._tiny, KernelChoice.TORCH, crowd.adapters, dtype="bfloat16")
    driver = Driver(loaded)
    sequence = driver.submit(PROMPTS[4], 1, adapter=5)
    while driver.turn():
        pass
    crowd.check("a5", sequence.prompt, sequence.output, tolerance=0.5)
    assert torch.tensor([told.chosen for told in sequence.output.logprobs]).isfinite().all()
