"""The building blocks of decoders, as plain objects over tensors: linear maps, RMSNorm, activations.

No `nn.Module`: a call costs what its tensor operations cost. Blocks are made empty, filled through
views of their tensors (`gpu.weights.load_into`), then sealed into the layout that is
fastest to multiply with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from gpu.quantized import Quantized
from gpu.tiling import Tilings, tiling_of
from protocols.config import Quantization


class Linear:
    """y = x W^T + b with W [out_features, in_features].

    On the CPU, float32 weights lie transposed (for the few rows of a decode step MKL's kernels for that
    layout measure 1.5 to 2 times as fast), and bfloat16 weights are prepacked for oneDNN when sealed
    (1.3 to 2 times as fast); `weight` is gone then. Tied embeddings are copied for it, and for weights of 8
    bits. On a GPU few rows go through a kernel of ours where it was found to be quicker (`tilings`).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        weight: Tensor | None = None,
    ) -> None:
        """Uninitialised, or over the given weight (tied embeddings)."""
        self.weight: Tensor | None
        if weight is not None:
            self.weight = weight
        elif device.type == "cpu" and dtype == torch.float32:
            self.weight = torch.empty(in_features, out_features, dtype=dtype, device=device).t()
        else:
            self.weight = torch.empty(out_features, in_features, dtype=dtype, device=device)
        self.bias = torch.empty(out_features, dtype=dtype, device=device) if bias else None
        self._packed: Tensor | None = None
        self.quantized: Quantized | None = None
        self.tilings: Tilings = ()

    def seal(self, quantization: Quantization = Quantization.NONE) -> None:
        """The weights are final: choose the fastest layout, once."""
        if quantization is not Quantization.NONE:
            assert self.weight is not None
            self.quantized, self.weight = Quantized.of(self.weight, quantization), None
            return
        if self.weight is None or self.weight.device.type != "cpu":
            return
        if self.weight.dtype == torch.float32:
            self.weight = self.weight.t().contiguous().t()
        elif self.weight.dtype == torch.bfloat16 and _onednn_bfloat16():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
            self.weight = None

    def rows(self) -> Tensor:
        """The weights as they were before they were sealed: [out_features, in_features]."""
        if self.weight is not None:
            return self.weight
        if self.quantized is not None:
            return self.quantized.rows()
        assert self._packed is not None
        return self._packed.to_dense()

    def parts(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """What is computed with, as it lies in memory."""
        if self.quantized is not None:
            yield from ((f"{name}.weight", self.quantized.numbers), (f"{name}.scale", self.quantized.scale))
        else:
            yield f"{name}.weight", self.rows()
        if self.bias is not None:
            yield f"{name}.bias", self.bias

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if self.quantized is not None:
            return self.quantized.linear(x, self.bias, tiling_of(self.tilings, len(x)))
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        assert self.weight is not None
        if self.tilings and (tiling := tiling_of(self.tilings, len(x))) is not None:
            # Triton is imported only where its kernels run.
            from gpu.cuda.product_kernels import product

            return product(x, self.weight, None, self.bias, tiling)
        return functional.linear(x, self.weight, self.bias)


def _onednn_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(size, dtype=dtype, device=device)
        self._shape, self._eps = (size,), eps

    def __call__(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        return functional.rms_norm(x, self._shape, self.weight, self._eps)


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
}
"""Activation by the name that `hidden_act` of a config gives it."""
