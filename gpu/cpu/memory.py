"""Memory for what every step reads from end to end: zeros, in pages of 2 MiB as far as the system gives them.

A processor finds few large pages quicker than many small ones, and its prefetchers stop at the end of a page.
What an allocator hands out may have been used before, and lies in small pages then; this comes from the
system, and goes back to it with the last tensor in it. Only whole large pages are asked for: of one that is
given back in part the system would keep all.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

HUGE = 1 << 21


def zeros(size: int) -> Tensor:
    """uint8 [size] of zeros; nothing is taken until it is written. Raises OSError where it cannot be had."""
    room = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(room, dtype=torch.uint8)
    first = -whole.data_ptr() % HUGE
    if size >= HUGE:
        room.madvise(mmap.MADV_HUGEPAGE, first, size // HUGE * HUGE)
    return whole[first : first + size]
