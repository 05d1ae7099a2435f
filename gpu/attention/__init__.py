"""Attention behind one small interface; `choice` finds the backend of a pool."""

from gpu.attention.base import Backend, Batch, Spec, StepAttention

__all__ = ["Backend", "Batch", "Spec", "StepAttention"]
