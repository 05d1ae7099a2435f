"""Attention behind one small interface."""

from gpu.attention.base import Backend, Batch, Spec, StepAttention
from gpu.attention.cpu import CpuAttention, supports
from gpu.attention.torch_sdpa import TorchAttention
from gpu.cpu.library import Kernels
from gpu.kv_pool import KvPool

__all__ = ["Backend", "Batch", "CpuAttention", "Spec", "StepAttention", "TorchAttention", "choose"]


def choose(pool: KvPool, kernels: Kernels | None) -> Backend:
    """The backend for the pool: the CPU's kernels where they are there and know its numbers, else torch's."""
    if kernels is not None and supports(pool):
        return CpuAttention(pool, kernels)
    return TorchAttention(pool)
