"""Compiles our Triton kernels for a Hopper GPU just as an executor launches them, where there is none.

Whatever would be launched is compiled for what it was launched with (types, alignments, what is left out),
and not run. Prints a line for each compilation: when it happened, `ready` or `serving`, the kernel, and the
shared memory that it takes. Run as a program, without the interpreter: `python -m tests.gpu.launched`.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import gpu.attention.triton_paged
import gpu.cuda.fused_kernels
import gpu.cuda.grouped_kernels
import gpu.cuda.product_kernels
import gpu.cuda.sample_kernels  # noqa: F401  (while the interpreter is off)
from gpu import quantized
from gpu.cuda.memory import largest_step
from gpu.cuda.tuning import Choices, Tuner
from gpu.executor import _WARMING
from gpu.loading import load_executor
from gpu.models import cuda
from gpu.sampler import Sampler
from protocols.config import KernelChoice, KvCacheDtype, Quantization
from protocols.sampling import SamplingParams
from tests.gpu.compiled import compile_all
from tests.gpu.driver import GREEDY, Driver
from tests.gpu.tiny import Tiny, make, prompts

MANNERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "8 bits": {"quantization": Quantization.INT8, "kv_cache_dtype": KvCacheDtype.FP8},
}
DRAWN = SamplingParams(temperature=0.9, top_p=0.8, min_p=0.1, seed=1)
PENALISED = SamplingParams(temperature=0.9, top_k=5, seed=1, presence_penalty=0.5, logprobs=3)


class Hopper:
    """What Triton asks its driver for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Recorder:
    """See `gpu.cuda.graphs.Recorder`."""

    def begin(self) -> None:
        pass

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work


class Launches:
    """Compiles instead of launching. when: what is printed beside each."""

    def __init__(self) -> None:
        self.when = "ready"
        self._known: set[str] = set()
        self._run = JITFunction.run
        driver.set_active(Hopper())

    def __call__(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        assert all(grid) and all(size < 65536 for size in grid[1:]), grid
        compiled = self._run(kernel, *args, grid=grid, warmup=True, **options)
        if compiled.hash not in self._known:
            self._known.add(compiled.hash)
            print(self.when, kernel.fn.__name__, compiled.metadata.shared)
        for tensor in args:
            if (
                isinstance(tensor, torch.Tensor)
                and kernel.fn.__name__ == "_choose"
                and tensor.dtype is torch.int64
            ):
                tensor.zero_()  # what it would have drawn
        return compiled


def tried(work: Callable[[], None]) -> float:
    """A clock that does not tell one way from another."""
    work()
    return 0.0


def serve(tiny: Tiny, launches: Launches, **options: Any) -> None:
    """Everything that an executor does before it is ready, then a bit of all that may come."""
    launches.when = "ready"
    options |= {"kernels": KernelChoice.TORCH, "attention_backend": "triton", "page_size": 16}
    config = tiny.config(
        dtype="bfloat16", max_running=6, chunk_size=96, max_loras=2, max_lora_rank=8, **options
    )
    executor = load_executor(config, lambda _: None, adapted=True)
    sampler = Sampler(
        executor.slots, executor.vocab_size, torch.device("cpu"), executor._grammars, fused=True
    )
    executor._keepers[executor._keepers.index(executor._sampler)] = executor._sampler = sampler
    executor.use_tuner(Tuner(tried, Choices(pathlib.Path(os.devnull) / "products.json")))
    executor.finish(executor.launch(largest_step(config)[0]))
    for tokens in _WARMING:
        executor.run_alone(tokens)
    executor.use_graphs((1, 2, 4, 6), Recorder(), lambda _: None)
    launches.when = "serving"
    for epoch, sampling in enumerate((GREEDY, DRAWN, PENALISED)):
        busy = Driver(executor, budget=24, depth=2)
        busy.epoch = 5 + epoch
        busy.generate(prompts(9, 40, 3, 30, 17, 2, 5), 6, sampling)


def main() -> None:
    """What is compiled by itself, then both manners of an executor."""
    compile_all()
    os.environ["TRITON_INTERPRET"] = "1"  # so that a CPU is taken for what Triton runs on
    cuda.GROUPED = quantized.FUSED = ("cpu",)
    launches = Launches()
    JITFunction.run = lambda kernel, *args, **options: launches(kernel, *args, **options)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"head_dim": 128, "num_hidden_layers": 1, "hidden_size": 256}
        tiny = make(pathlib.Path(folder), "Qwen3ForCausalLM", **sizes)
        for options in MANNERS.values():
            serve(tiny, launches, **options)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
