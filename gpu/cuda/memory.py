"""How much of a GPU's memory the KV pool may have: what is left when the largest step has run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from protocols.config import Config
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen
from protocols.sampling import SamplingParams

FRACTION = 0.9
"""Of a GPU's whole memory, for weights, steps and pages together, where no option says otherwise."""

GRAPHS_BYTES = 512 << 20
"""For what CUDA graphs keep for themselves."""

_COSTLY = SamplingParams(temperature=1.0, top_p=0.9, seed=0)


def largest_step(config: Config) -> tuple[Plan, int]:
    """As many rows as a step may have, of as many sequences as may run, each of them sampled; and the pages
    that it takes."""
    count = min(config.max_running, config.chunk_size)
    share = min(config.chunk_size // count, config.model.context)
    pages = -(-share // config.page_size)
    opens, grants, chunks = [], [], []
    for slot in range(count):
        opens.append(SlotOpen(slot, slot, _COSTLY, 0, share, 0))
        numbers = np.arange(slot * pages, (slot + 1) * pages, dtype="<i4")
        grants.append(PageGrant(slot, 0, numbers.tobytes()))
        chunks.append(Chunk(slot, 0, bytes(4 * share), True))
    return Plan(-2, 0, (), tuple(opens), tuple(grants), tuple(chunks)), count * pages


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
