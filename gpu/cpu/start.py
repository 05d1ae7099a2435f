"""Get the CPU's kernels ready: compile them once, check them against torch, or say why they are not used."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from gpu.attention.base import Batch, Spec
from gpu.cpu import build
from gpu.cpu.attention import CpuAttention
from gpu.cpu.library import Kernels
from gpu.kv_pool import KvPool, KvShape
from protocols.compiling import Unavailable

_PAGES = (16, 24, 64)
"""Sizes of pages in which attention takes different ways."""
_ATTENTION_ERROR = {torch.float32: 1e-4, torch.bfloat16: 4e-2}


def start(threads: int, progress: Callable[[str], None]) -> Kernels | None:
    """The kernels with a team of `threads`; None where there are none, and then `progress` has said why.

    Tiles (AMX) are used where the processor has them and they agree with its vectors.
    """
    try:
        kernels = Kernels(build.load(progress), threads)
    except Unavailable as reason:
        progress(f"no CPU kernels, torch computes instead: {reason}")
        return None
    tiles = kernels.use_tiles(True) and agrees(kernels, torch.bfloat16)
    kernels.use_tiles(tiles)
    if all(agrees(kernels, dtype) for dtype in (torch.float32, torch.bfloat16)):
        return kernels
    progress("no CPU kernels, torch computes instead: those compiled here give other numbers")
    return None


def agrees(kernels: Kernels, dtype: torch.dtype) -> bool:
    """Whether products and attention of odd sizes are what torch makes of them."""
    return _multiplies(kernels, dtype) and all(_attends(kernels, dtype, page) for page in _PAGES)


def _multiplies(kernels: Kernels, dtype: torch.dtype) -> bool:
    weight, x = _random(dtype, (200, 328), (37, 328))
    error = kernels.linear(kernels.pack(weight), x) - x.float() @ weight.float().T
    return bool(error.abs().max() < 1e-3)


def _attends(kernels: Kernels, dtype: torch.dtype, page: int) -> bool:
    """A prompt of two blocks of keys."""
    heads, shape, rows = 4, KvShape(kv_heads=2, key_dim=64, value_dim=64), 135
    pages = -(-rows // page)
    pool = KvPool([shape], pages, page, dtype, torch.device("cpu"))
    lengths, positions = np.array([rows], np.int64), np.arange(rows)
    batch = Batch(lengths, lengths, np.arange(pages, dtype=np.int32)[None], positions, positions, 0)
    sizes = ((rows, count, shape.key_dim) for count in (heads, shape.kv_heads, shape.kv_heads))
    query, key, value = _random(dtype, *sizes)
    got = CpuAttention(pool, kernels).prepare(batch).attend(0, query, key, value, Spec(scale=0.125))
    q, k, v = (x.float().transpose(0, 1)[None] for x in (query, key, value))
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125, enable_gqa=True)
    return bool((got.float() - expected[0].transpose(0, 1)).abs().max() < _ATTENTION_ERROR[dtype])


def _random(dtype: torch.dtype, *sizes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]
