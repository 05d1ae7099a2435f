"""Attention behind one small interface."""

from gpu.attention.base import Backend, Batch, Spec, StepAttention
from gpu.attention.choice import choose
from gpu.attention.cpu import CpuAttention
from gpu.attention.torch_sdpa import TorchAttention

__all__ = ["Backend", "Batch", "CpuAttention", "Spec", "StepAttention", "TorchAttention", "choose"]
