"""Speed of the bare executor: fractions of the roofline, ablations, and transformers beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import torch

from gpu.attention.paged import PagedAttention
from gpu.cuda.graphs import CudaRecorder
from gpu.device import choose_dtype
from gpu.executor import Executor
from gpu.kv_pool import KvPool, choose_pages, stored_as, token_bytes
from gpu.models.base import Model
from gpu.models.loading import load_model
from protocols.config import Config, KernelChoice, Quantization, graph_sizes, read_model_card
from protocols.errors import StartError
from tools.bench.gpu.driver import Driver, Request, requests
from tools.bench.gpu.machine import Machine
from tools.bench.gpu.shapes import prefill_operations, randomise, spec_of, weight_bytes, write

ABLATIONS: dict[str, dict[str, Any]] = {
    "as served": {},
    "no graphs": {"cuda_graphs": "off"},
    "depth 1": {"depth": 1},
    "triton": {"attention_backend": "triton"},
    "flash": {"attention_backend": "flash"},
    "flashinfer": {"attention_backend": "flashinfer"},
    "torch": {"attention_backend": "torch"},
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured. peer: for transformers' ContinuousBatchingConfig, where its choice is not wanted."""

    batches: tuple[int, ...]
    context: int
    steps: int
    prompts: tuple[int, ...]
    workload: tuple[int, tuple[int, int], tuple[int, int]]
    peer: dict[str, int] = dataclasses.field(default_factory=dict)


FULL = Sizes((1, 16, 64, 256), 1024, 64, (1024, 2048, 4096, 8192, 16384), (256, (100, 1024), (100, 1024)))
SMALLEST = Sizes(
    (1, 3), 20, 4, (16, 40), (3, (5, 20), (3, 6)), {"page_size": 32, "num_blocks": 16, "max_batch_tokens": 64}
)


class Subject:
    """One model in memory; executors over it come and go."""

    def __init__(
        self,
        directory: pathlib.Path,
        shape: str,
        device: torch.device,
        machine: Machine,
        sizes: Sizes,
        **options: Any,
    ) -> None:
        """options: of the Config, those that decide how the model is loaded and its pages are kept."""
        self.shape, self.sizes, self._machine, self._device = shape, sizes, machine, device
        write(directory, shape)
        longest = max(
            *sizes.prompts, sizes.context + sizes.steps, sum(pair[1] for pair in sizes.workload[1:])
        )
        self.config = Config(
            model=read_model_card(directory, max_model_len=longest + 2),
            device=str(device),
            dtype="bfloat16",
            kernels=KernelChoice.TORCH,
            max_running=max(sizes.batches),
            chunk_size=max(8192 if device.type == "cuda" else 0, max(sizes.batches) + 16),
            **options,
        )
        self.spec = spec_of(shape)
        self.dtype = choose_dtype("bfloat16", None, device)
        self.model: Model = self._load()
        self._pool: KvPool | None = None

    def _load(self) -> Model:
        with torch.inference_mode():
            model, _ = load_model(self.config, self._device, lambda _: None)
            randomise(model)
        return model

    def _pages(self) -> KvPool:
        if self._pool is None:
            with torch.inference_mode():
                kv, stored = self.model.kv, stored_as(self.config, self.dtype, self._device)
                pages = choose_pages(self.config, kv, stored, self._device, 8 << 30)
                self._pool = KvPool(kv, pages, self.config.page_size, self.dtype, self._device, stored)
        return self._pool

    @contextlib.contextmanager
    def executor(self, **options: Any) -> Iterator[tuple[Executor, Driver]]:
        """An executor with these options. StartError where they cannot be had."""
        config: Config = msgspec.structs.replace(self.config, **options)
        executor = Executor(config, self.model, self._pages())
        executor.warm_up()
        if self._device.type == "cuda":
            sizes = graph_sizes(config.cuda_graphs, config.max_running)
            executor.use_graphs(sizes, CudaRecorder(self._device), _silent)
        yield executor, Driver(executor, config.chunk_size, config.depth)

    def decode(self, driver: Driver, batch: int) -> dict[str, float]:
        """A decode step of `batch` sequences in the middle of their contexts."""
        sizes, spec = self.sizes, self.spec
        asked = [Request([7] * sizes.context, sizes.steps) for _ in range(batch)]
        driver.run(asked[:1])
        seconds = driver.run(asked).decode_seconds(batch)
        positions = batch * (sizes.context + sizes.steps / 2)
        kept = self.config.quantization is not Quantization.NONE
        stored = stored_as(self.config, self.dtype, self._device)
        needed: float = weight_bytes(spec, 1 if kept else self.dtype.itemsize)
        needed += positions * token_bytes(self.model.kv, stored)
        return {
            "milliseconds": seconds * 1e3,
            "tokens_per_second": batch / seconds,
            "roofline": needed / self._machine.bandwidth / seconds,
        }

    def prefill(self, driver: Driver, length: int) -> dict[str, float]:
        """One prompt, its first token included."""
        driver.run([Request([7] * length, 1)])
        seconds = min(driver.run([Request([7] * length, 1)]).seconds for _ in range(3))
        operations = prefill_operations(self.spec, length)
        return {
            "milliseconds": seconds * 1e3,
            "tokens_per_second": length / seconds,
            "roofline": operations / self._machine.rates["bfloat16"] / seconds,
        }

    def workload(self, driver: Driver) -> dict[str, float]:
        """Many requests of random lengths, as nano-vllm measures it."""
        count, prompt, output = self.sizes.workload
        asked = requests(count, prompt, output, self.spec.vocab_size)
        outcome = driver.run(asked)
        tokens = sum(each.output for each in asked)
        return {"seconds": outcome.seconds, "tokens_per_second": tokens / outcome.seconds}

    def ablations(self, changes: Mapping[str, dict[str, Any]] = ABLATIONS) -> dict[str, dict[str, object]]:
        """Decode steps with one thing changed at a time; a sentence where it cannot be had here."""
        found: dict[str, dict[str, object]] = {}
        for title, options in changes.items():
            try:
                with self.executor(**options) as (executor, driver):
                    backend = executor.attention
                    found[title] = {
                        "attention": backend.name if isinstance(backend, PagedAttention) else "torch",
                        **{str(batch): self.decode(driver, batch) for batch in self.sizes.batches[:2]},
                    }
            except StartError as error:
                found[title] = {"refused": str(error)}
        return found


def transformers_beside(directory: pathlib.Path, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """The same workload through transformers: `generate` with a static cache, and continuous batching. A
    sentence where its version cannot."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    model = model.to(device).eval()
    count, prompt, output = sizes.workload
    asked = requests(count, prompt, output, model.config.vocab_size)
    found: dict[str, Any] = {}
    for title, work in (("generate, static cache", _static), ("continuous batching", _batching)):
        try:
            found[title] = work(model, sizes, asked)
        except Exception as error:  # whatever a peer's version raises is its result
            found[title] = {"failed": str(error).partition("\n")[0]}
    return found


def _static(model: Any, sizes: Sizes, asked: list[Request]) -> dict[str, float]:
    """Decode steps of one sequence."""
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


def _batching(model: Any, sizes: Sizes, asked: list[Request]) -> dict[str, float]:
    import transformers

    longest = max(each.output for each in asked)
    greedy = transformers.GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=-1)
    started = time.perf_counter()
    answers = model.generate_batch(
        [each.prompt for each in asked],
        generation_config=greedy,
        continuous_batching_config=transformers.ContinuousBatchingConfig(**sizes.peer),
        max_new_tokens=longest,
    )
    seconds = time.perf_counter() - started
    tokens = sum(len(answer.generated_tokens) for answer in answers.values())
    return {"seconds": seconds, "tokens_per_second": tokens / seconds}


def _silent(_: str) -> None:
    """Progress that nobody watches."""
