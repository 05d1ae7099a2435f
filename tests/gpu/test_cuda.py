"""What only a GPU can show. Skipped elsewhere; `python -m tools.bench.gpu` checks more, and measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu.cuda.graphs import DecodeGraphs
from gpu.executor import Executor
from protocols.plan import Plan
from protocols.sampling import SamplingParams
from tests.gpu.driver import GREEDY, Driver, ints
from tests.gpu.tiny import Tiny, make, prompts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no CUDA device.")

PROMPTS = prompts(9, 40, 3, 30)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("qwen3"), "Qwen3ForCausalLM", head_dim=64)


@pytest.fixture(scope="module")
def executor(tiny: Tiny) -> Executor:
    return tiny.executor(device="cuda")


def test_tokens_of_transformers_with_graphs_and_without(tiny: Tiny, executor: Executor) -> None:
    assert isinstance(executor._graphs, DecodeGraphs)
    recorded = Driver(executor, budget=20, depth=2).generate(PROMPTS, 12, GREEDY)
    for prompt, output in zip(PROMPTS, recorded, strict=True):
        tiny.check(prompt, output)
    launched = Driver(tiny.executor(device="cuda", cuda_graphs="off"), budget=20).generate(
        PROMPTS, 12, GREEDY
    )
    assert [output.tokens for output in launched] == [output.tokens for output in recorded]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.0, seed=1),
        SamplingParams(temperature=0.9, top_p=0.8, min_p=0.01, seed=1),
        SamplingParams(temperature=0.9, top_k=5, seed=1, presence_penalty=0.5, logprobs=3),
        SamplingParams(temperature=0.9, seed=1, logit_bias=((3, 1.0),)),
    ],
)
def test_a_launch_waits_for_nothing(executor: Executor, sampling: SamplingParams) -> None:
    """Opens, chunks, mixed steps and decodes: an operation that would wait for the device raises."""
    driver = Driver(executor, budget=20, depth=2)
    executor.finish(executor.launch(Plan(epoch=-1, step=0)))
    driver.generate(PROMPTS, 4, sampling)
    driver = Driver(executor, budget=20, depth=2)
    driver.epoch = 7
    launch = executor.launch

    def watched(plan: Plan) -> object:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    executor.launch = watched  # type: ignore[method-assign, assignment]
    try:
        driver.generate(PROMPTS, 6, sampling)
    finally:
        executor.launch = launch  # type: ignore[method-assign]


def test_a_launch_returns_before_the_device_is_done(executor: Executor) -> None:
    """The device is kept busy, and a decode is launched behind that: it cannot have finished."""
    executor.finish(executor.launch(Plan(epoch=-1, step=0)))
    driver = Driver(executor, depth=1)
    driver.epoch = 9
    sequence = driver.submit(PROMPTS[0], 3)
    driver.turn()
    torch.cuda._sleep(2_000_000_000)
    busy = torch.cuda.Event()
    busy.record()
    flight = executor.launch(Plan(9, 50, decodes=ints([sequence.slot])))
    assert not busy.query()
    assert len(np.frombuffer(executor.finish(flight).tokens, "<i4")) == 1
