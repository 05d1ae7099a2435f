"""The rows of each expert: what transformers' router chooses for the same tokens."""

from __future__ import annotations

import pathlib

import pytest
import torch

from protocols.errors import VerbError
from tests.gpu.driver import Driver
from tests.gpu.tiny import Tiny, make, prompts

EXPERTS, CHOSEN = 6, 2


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    sizes = {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "moe_intermediate_size": 32}
    path = tmp_path_factory.mktemp("mixture")
    return make(path, "Qwen3MoeForCausalLM", num_hidden_layers=3, mlp_only_layers=[1], **sizes)


def chosen(tiny: Tiny, texts: list[list[int]]) -> dict[int, tuple[int, ...]]:
    """By the layers that have experts, the rows of each, of whole texts."""
    total = {0: torch.zeros(EXPERTS, dtype=torch.int64), 2: torch.zeros(EXPERTS, dtype=torch.int64)}
    for text in texts:
        with torch.inference_mode():
            out = tiny.reference(input_ids=torch.tensor([text]), use_cache=False, output_router_logits=True)
        for counts, logits in zip(total.values(), out.router_logits, strict=True):
            counts += torch.bincount(logits.topk(CHOSEN).indices.flatten(), minlength=EXPERTS)
    return {layer: tuple(counts.tolist()) for layer, counts in total.items()}


@pytest.mark.parametrize("depth", [1, 2])
def test_each_row_is_counted_once(mixture: Tiny, depth: int) -> None:
    executor, given = mixture.executor(), prompts(7, 30, 19)
    Driver(executor).generate(given, 3)
    executor.record_experts(True)
    assert not any(map(sum, executor.take_experts().values())), "only from the start on"
    outputs = Driver(executor, depth=depth, budget=16).generate(given, 9)
    texts = [prompt + output.tokens[:-1] for prompt, output in zip(given, outputs, strict=True)]
    executor.record_experts(True)
    counts = executor.take_experts()
    assert counts == chosen(mixture, texts)
    assert {sum(rows) for rows in counts.values()} == {CHOSEN * sum(map(len, texts))}
    Driver(executor).generate(given[:1], 1)
    assert executor.take_experts() == chosen(mixture, given[:1])
    executor.record_experts(False)
    Driver(executor).generate(given, 2)
    assert not any(map(sum, executor.take_experts().values()))


def test_a_model_without_experts(tmp_path: pathlib.Path) -> None:
    executor = make(tmp_path, "Qwen3ForCausalLM").executor()
    executor.record_experts(False)
    with pytest.raises(VerbError, match="no mixture of experts"):
        executor.record_experts(True)
    assert executor.take_experts() == {}
