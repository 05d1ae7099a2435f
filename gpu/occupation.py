"""Giving memory back to the system, and taking it again.

On a CPU the pages behind a tensor are dropped (madvise(2)) while its addresses stay, which kernels may have
been told; what is read there later is zeros. On a GPU a tensor's storage is emptied and grown again.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap

import torch
from torch import Tensor

_LIBC = ctypes.CDLL(None, use_errno=True)


def discard(tensor: Tensor) -> None:
    """Give back the memory of a whole tensor; what it held is lost."""
    if tensor.device.type != "cpu":
        tensor.untyped_storage().resize_(0)
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and _LIBC.madvise(
        ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED
    ):
        raise OSError(ctypes.get_errno(), "madvise(MADV_DONTNEED)")


def reclaim(tensor: Tensor) -> None:
    """Take the memory of a tensor that was discarded; it holds anything."""
    if tensor.device.type != "cpu":
        tensor.untyped_storage().resize_(tensor.nbytes)


def settle() -> None:
    """Let the allocators, too, give back what nobody uses."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError):
        _LIBC.malloc_trim(0)
