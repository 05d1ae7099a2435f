"""A step that is launched for a GPU must not wait for it: what would wait is counted on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpu.executor import Executor
from gpu.sampler import Sampler
from protocols.config import KernelChoice
from protocols.plan import Plan
from protocols.sampling import SamplingParams
from tests.gpu import interpreted
from tests.gpu.driver import Driver
from tests.gpu.tiny import Tiny, make, prompts

pytestmark = pytest.mark.timeout(300)

PROMPTS = prompts(6, 3)
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"}
"""Operations of torch that bring a number from the device to the host; an index of booleans is one too."""


class Waits(TorchDispatchMode):
    """Notes each operation that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = (
            args[1] if name.startswith(("index", "_index")) and isinstance(args[1], (list, tuple)) else ()
        )
        if name in WAITS or any(part is not None and part.dtype == torch.bool for part in indices):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    assert interpreted.DEVICE
    return make(tmp_path_factory.mktemp("qwen3"), "Qwen3ForCausalLM", head_dim=16, num_hidden_layers=1)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.0, seed=1),
        SamplingParams(temperature=0.9, top_p=0.8, min_p=0.01, seed=1),
        SamplingParams(temperature=0.9, top_k=5, seed=1, presence_penalty=0.5, logprobs=3),
        SamplingParams(temperature=0.9, seed=1, logit_bias=((3, 1.0),), min_tokens=2, stop_token_ids=(5,)),
    ],
    ids=["greedy", "top-p", "top-k, penalties, logprobs", "bias, stops"],
)
def test_a_launch_asks_the_device_for_nothing(tiny: Tiny, sampling: SamplingParams) -> None:
    """The sampler is that of a GPU in torch's operations; opens, chunks, mixed steps and decodes."""
    executor = tiny.executor(kernels=KernelChoice.TORCH)
    _as_on_a_gpu(executor)
    waits, launch = Waits(), executor.launch

    def watched(plan: Plan) -> Any:
        with waits:
            return launch(plan)

    executor.launch = watched  # type: ignore[method-assign]
    Driver(executor, budget=5, depth=2).generate(PROMPTS, 4, sampling)
    assert not waits.found


def _as_on_a_gpu(executor: Executor) -> None:
    sampler = Sampler(executor.slots, executor.vocab_size, torch.device("cpu"), executor._grammars)
    sampler._cpu = None
    executor._keepers[executor._keepers.index(executor._sampler)] = sampler
    executor._sampler = sampler


def test_what_would_wait_is_found() -> None:
    x = torch.arange(4.0)
    for work in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool((x > 1).any()), lambda: x.nonzero()):
        with Waits() as waits:
            work()
        assert waits.found
    with Waits() as waits:
        x[torch.tensor([1, 2])] + torch.where(x > 1, x, 0).sum()
    assert not waits.found
