"""The start of an executor: its model, its pages, what is compiled or recorded ahead of the first request."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from gpu.cpu import cores
from gpu.cpu.library import Kernels
from gpu.cpu.start import start
from gpu.cuda.graphs import CudaRecorder
from gpu.cuda.memory import await_others, hold, needed_by_steps
from gpu.cuda.tuning import Tuner
from gpu.device import choose_device
from gpu.executor import Executor
from gpu.kv_pool import KvPool, choose_pages, stored_as
from gpu.models.base import Model
from gpu.models.loading import load_model
from protocols.config import Config, KernelChoice, graph_sizes
from protocols.errors import StartError
from protocols.plan import Plan, StepDone
from protocols.weights import ORIGINAL, Weights


def load_executor(
    config: Config,
    progress: Callable[[str], None],
    replica: int = 0,
    weights: Weights = ORIGINAL,
    *,
    adapted: bool = False,
) -> Executor:
    """Load the model of `config` with `weights`, reserve its pages, as replica number `replica`. adapted:
    adapters are to follow, for which there has to be room beside the pages, as there is with `enable_lora`.
    Tells `progress` what it does; StartError with a sentence when it cannot be done."""
    device = choose_device(config.device, replica)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events are recorded on the current device
        await_others(device)
    elif config.cuda_graphs not in ("auto", "off"):
        raise StartError("--cuda-graphs needs a CUDA device.", exit_code=2)
    kernels = _start_threads(config, device, progress)
    with torch.inference_mode():
        try:
            model, dtype = load_model(config, device, progress, kernels, weights)
        except torch.OutOfMemoryError as error:
            raise StartError(f"the weights of {config.model.name} do not fit on {device}.") from error
        if (adapted or config.enable_lora) and model.lora is not None:
            hold(model.lora, config)
        pool = _reserve(config, model, dtype, device)
    stored = str(pool.stored).removeprefix("torch.")
    progress(f"{pool.pages} pages of {config.page_size} tokens in {stored} on {device}")
    executor = Executor(config, model, pool, kernels, weights, progress)
    if device.type == "cuda":
        progress("trying out kernels")
        executor.use_tuner(Tuner.on(device))
    executor.warm_up()
    if device.type == "cuda":
        sizes = graph_sizes(config.cuda_graphs, config.max_running)
        executor.use_graphs(sizes, CudaRecorder(device), progress)
    return executor


def _start_threads(config: Config, device: torch.device, progress: Callable[[str], None]) -> Kernels | None:
    """Give torch its threads, and the CPU's kernels theirs where these are wanted and can be had."""
    threads = cores.threads(len(os.sched_getaffinity(0)), config.dp, config.threads)
    torch.set_num_threads(threads.torch)
    wanted = device.type == "cpu" and config.kernels is KernelChoice.AUTO
    return start(threads.kernels, progress) if wanted else None


def _reserve(config: Config, model: Model, dtype: torch.dtype, device: torch.device) -> KvPool:
    """The KV pool. On a GPU it gets what the largest step, tried over a small pool, leaves."""
    stored = stored_as(config, dtype, device)

    def pool_of(pages: int) -> KvPool:
        return KvPool(model.kv, pages, config.page_size, dtype, device, stored)

    def trial(pages: int) -> Callable[[Plan], StepDone]:
        small = Executor(config, model, pool_of(pages))
        return lambda plan: small.finish(small.launch(plan))

    reserved = needed_by_steps(config, trial, device) if device.type == "cuda" else 0
    return pool_of(choose_pages(config, model.kv, stored, device, reserved))
