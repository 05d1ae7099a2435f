"""How much of a GPU's memory the KV pool may have: what is left when the largest step has run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from gpu.lora.base import LoraSlots
from gpu.occupation import settle
from protocols.config import Config, ModelCard, graph_sizes
from protocols.errors import StartError
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen
from protocols.sampling import SamplingParams

FRACTION = 0.9
"""Of a GPU's whole memory, for weights, steps and pages together, where no option says otherwise."""

_GRAPH_BYTES = 12 << 20
"""For what the driver and libraries keep for a CUDA graph."""

_COSTLY = SamplingParams(temperature=1.0, top_p=0.9, presence_penalty=0.1, logprobs=1, seed=0)


def largest_step(config: Config) -> tuple[Plan, int]:
    """As many rows as a step may have, of as many sequences as may run, each of them sampled; and the pages
    that it takes."""
    count = min(config.max_running, config.chunk_size)
    share = min(config.chunk_size // count, config.model.context)
    pages = -(-share // config.page_size)
    opens, grants, chunks = [], [], []
    for slot in range(count):
        opens.append(SlotOpen(slot, slot, _COSTLY, 0, share, 0, history=bytes(4 * share)))
        numbers = np.arange(slot * pages, (slot + 1) * pages, dtype="<i4")
        grants.append(PageGrant(slot, 0, numbers.tobytes()))
        chunks.append(Chunk(slot, 0, bytes(4 * share), True))
    return Plan(-2, 0, (), tuple(opens), tuple(grants), tuple(chunks)), count * pages


def needed_by_steps(
    config: Config, trial: Callable[[int], Callable[[Plan], object]], device: torch.device
) -> int:
    """Bytes of a GPU that steps need, measured: the largest one runs. trial: makes of a number of pages what
    runs a plan over them. StartError where it does not fit."""
    plan, pages = largest_step(config)
    try:
        needed = step_bytes(functools.partial(trial(pages), plan), device)
    except torch.OutOfMemoryError as error:
        raise StartError(
            f"a step of {config.chunk_size} tokens does not fit beside the weights on {device}: "
            "use a smaller --chunk-size."
        ) from error
    settle()  # whose parts know one another does not go by itself
    return needed + graphs_bytes(graph_sizes(config.cuda_graphs, config.max_running), config.model)


def await_others(device: torch.device, seconds: float = 0.05, most: int = 40) -> None:
    """Who had the device before may be giving its memory back still: return when no more of it comes, or
    after so many looks, each so much later."""
    free, _ = torch.cuda.mem_get_info(device)
    for _ in range(most):
        time.sleep(seconds)
        before, (free, _) = free, torch.cuda.mem_get_info(device)
        if free <= before:
            return


def hold(slots: LoraSlots, config: Config) -> None:
    """Make room for the adapters that may come. StartError where there is none."""
    try:
        slots.hold(config.max_loras, config.max_lora_rank)
    except torch.OutOfMemoryError as error:
        raise StartError(
            f"{config.max_loras} adapters of rank {config.max_lora_rank} do not fit beside the weights: use "
            "a smaller --max-loras or --max-lora-rank."
        ) from error


def graphs_bytes(sizes: Sequence[int], card: ModelCard) -> int:
    """What CUDA graphs of these batch sizes take: the largest works in memory of its own, of which logits are
    nearly all, in the model's precision and in float32, and those that it gives to the sampler."""
    return len(sizes) * _GRAPH_BYTES + max(sizes, default=0) * card.vocab_size * 12


def step_bytes(run: Callable[[], object], device: torch.device) -> int:
    """What `run` takes of the device's memory at its peak, beyond what is taken before and after."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.empty_cache()
    return peak - before


def pool_bytes(free: int, total: int, fraction: float, reserved: int) -> int:
    """Bytes for pages, of `free` and `total` bytes of the device, when steps need `reserved`."""
    return max(0, int(free - (1 - fraction) * total) - reserved)
