"""Where and in which precision a model runs."""

from __future__ import annotations

import importlib.util
import os

import torch

from protocols.errors import StartError

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}


def choose_device(name: str, replica: int = 0) -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:<index>`. Without an index, replicas take one
    GPU after the other."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise StartError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:<index>.", exit_code=2)
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if int(index or 0) >= count:
        raise StartError(f"device {name} is not there: torch sees {count} CUDA devices.")
    return torch.device("cuda", int(index) if index else replica % count)


def runs_triton(device: torch.device) -> bool:
    """Whether Triton is there and can run on the device: on a GPU, or in its interpreter."""
    able = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return able and importlib.util.find_spec("triton") is not None


def choose_dtype(name: str, stored: torch.dtype | None, device: torch.device) -> torch.dtype:
    """`auto`: the checkpoint's own. On a CPU that cannot multiply it natively, float32."""
    if name != "auto":
        if name not in _DTYPES:
            raise StartError(f"unknown dtype {name!r}: choose auto, {', '.join(_DTYPES)}.", exit_code=2)
        return _DTYPES[name]
    if stored not in (torch.bfloat16, torch.float16):
        return torch.float32
    if device.type == "cpu" and not (stored == torch.bfloat16 and _multiplies_bfloat16()):
        return torch.float32
    return stored


def _multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
