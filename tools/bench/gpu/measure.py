"""Speed of the bare executor: fractions of the roofline, and what makes it."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import msgspec
import torch

from gpu.attention.paged import PagedAttention
from gpu.cuda.graphs import CudaRecorder
from gpu.cuda.tuning import Tuner
from gpu.device import choose_dtype
from gpu.executor import Executor
from gpu.kv_pool import KvPool, choose_pages, stored_as, token_bytes
from gpu.models.llama import Decoder
from gpu.models.loading import blank
from gpu.occupation import settle
from protocols.config import Config, KernelChoice, Quantization, graph_sizes, read_model_card
from protocols.errors import StartError
from tools.bench.gpu.driver import Driver, Request, requests
from tools.bench.gpu.machine import Machine
from tools.bench.gpu.shapes import prefill_operations, randomise, spec_of, weight_bytes, write

ABLATIONS: dict[str, dict[str, Any]] = {
    "as served": {},
    "no graphs": {"cuda_graphs": "off"},
    "the library's products": {"tuned": False},
    "depth 1": {"depth": 1},
    "triton": {"attention_backend": "triton"},
    "flash": {"attention_backend": "flash"},
    "flashinfer": {"attention_backend": "flashinfer"},
    "torch": {"attention_backend": "torch"},
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured. peer, peer_page: for transformers' ContinuousBatchingConfig, and the tokens of a page
    there, where its choice is not wanted."""

    batches: tuple[int, ...]
    context: int
    steps: int
    prompts: tuple[int, ...]
    workload: tuple[int, tuple[int, int], tuple[int, int]]
    peer: dict[str, int] = dataclasses.field(default_factory=dict)
    peer_page: int = 0


FULL = Sizes((1, 16, 64, 256), 1024, 64, (1024, 2048, 4096, 8192, 16384), (256, (100, 1024), (100, 1024)))
SMALLEST = Sizes(
    (1, 3), 20, 4, (16, 40), (3, (5, 20), (3, 6)), {"num_blocks": 16, "max_batch_tokens": 64}, 32
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
            cuda_graphs=",".join(map(str, sizes.batches)),
            **options,
        )
        self.spec = spec_of(shape)
        self.dtype = choose_dtype("bfloat16", None, device)
        self.model = self._load()
        self._tuner = Tuner.on(device) if device.type == "cuda" else None
        self._pool: KvPool | None = None

    def _load(self) -> Decoder:
        """Nothing is read, since that would take longer than what is measured."""
        with torch.inference_mode():
            model = blank(self.spec, self.dtype, self._device, self.config.model.context)
            randomise(model)
            model.seal(self.config.quantization)
        return model

    def _pages(self) -> KvPool:
        if self._pool is None:
            with torch.inference_mode():
                kv, stored = self.model.kv, stored_as(self.config, self.dtype, self._device)
                pages = choose_pages(self.config, kv, stored, self._device, 8 << 30)
                self._pool = KvPool(kv, pages, self.config.page_size, self.dtype, self._device, stored)
        return self._pool

    @contextlib.contextmanager
    def executor(self, *, tuned: bool = True, **options: Any) -> Iterator[tuple[Executor, Driver]]:
        """An executor with these options. tuned: few rows are multiplied by what was found to be best.
        StartError where they cannot be had."""
        config: Config = msgspec.structs.replace(self.config, **options)
        executor = Executor(config, self.model, self._pages())
        for linear in self.model.linears():
            linear.tilings = ()
        if self._tuner is not None and tuned:
            executor.use_tuner(self._tuner)
        executor.warm_up()
        if self._device.type == "cuda":
            sizes = graph_sizes(config.cuda_graphs, config.max_running)
            executor.use_graphs(sizes, CudaRecorder(self._device), _silent)
        try:
            yield executor, Driver(executor, config.chunk_size, config.depth)
        finally:
            executor.release_graphs()
            del executor
            settle()

    def tilings(self) -> dict[str, list[str]]:
        """How few rows are multiplied with each shape of matrices."""
        every = {str([*linear.rows().shape]): linear.tilings for linear in self.model.linears()}
        return {shape: [str(each or "the library") for each in found] for shape, found in every.items()}

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

    def ablation(self, **options: Any) -> dict[str, object]:
        """Decode steps with these options; a sentence where they cannot be had here."""
        try:
            with self.executor(**options) as (executor, driver):
                backend = executor.attention
                return {
                    "attention": backend.name if isinstance(backend, PagedAttention) else "torch",
                    **{str(batch): self.decode(driver, batch) for batch in self.sizes.batches[::2]},
                }
        except StartError as error:
            return {"refused": str(error)}


def _silent(_: str) -> None:
    """Progress that nobody watches."""
