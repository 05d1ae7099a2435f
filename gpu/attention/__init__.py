"""Attention behind one small interface."""

from gpu.attention.base import Backend, Batch, Spec, StepAttention
from gpu.attention.torch_sdpa import TorchAttention
from gpu.kv_pool import KvPool

__all__ = ["Backend", "Batch", "Spec", "StepAttention", "TorchAttention", "choose"]


def choose(pool: KvPool) -> Backend:
    """The backend for the pool's device: so far there is one, for all of them."""
    return TorchAttention(pool)
