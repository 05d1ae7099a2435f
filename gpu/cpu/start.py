"""Get the CPU's kernels ready: compile them once, see that they compute what torch does, or say why not."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gpu.cpu import build
from gpu.cpu.library import Kernels


def start(threads: int, progress: Callable[[str], None]) -> Kernels | None:
    """The kernels with a team of `threads`; None where there are none, and then `progress` has said why.

    Tiles (AMX) are used where the processor has them and they agree with its vectors.
    """
    try:
        kernels = Kernels(build.load(progress), threads)
    except build.Unavailable as reason:
        progress(f"no CPU kernels, torch computes instead: {reason}")
        return None
    tiles = kernels.use_tiles(True) and agrees(kernels, torch.bfloat16)
    kernels.use_tiles(tiles)
    if all(agrees(kernels, dtype) for dtype in (torch.float32, torch.bfloat16)):
        return kernels
    progress("no CPU kernels, torch computes instead: those compiled here give other numbers")
    return None


def agrees(kernels: Kernels, dtype: torch.dtype) -> bool:
    """Whether a product of odd sizes is what torch makes of it."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=generator).to(dtype) for size in ((200, 328), (37, 328)))
    error = kernels.linear(kernels.pack(weight), x) - x.float() @ weight.float().T
    return bool(error.abs().max() < 1e-3)
