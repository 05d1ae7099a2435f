"""What this machine is, and what it can do at most: the roofline that figures are fractions of."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable

import torch

_PACKAGES = ("torch", "triton", "transformers", "flash-attn", "flash_attn_3", "flashinfer-python")


@dataclasses.dataclass(frozen=True)
class Machine:
    """bandwidth: bytes a second, read and written, of a large copy. rates: multiplications and additions a
    second of a large matrix product, by dtype."""

    device: str
    packages: dict[str, str]
    bandwidth: float
    rates: dict[str, float]


def describe(device: torch.device, *, smallest: bool) -> Machine:
    """Measure the machine; `smallest` does so in a moment, and means nothing."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    packages = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device.type == "cuda":
        packages["cuda"] = str(torch.version.cuda)
    side = 64 if smallest else 8192
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    rates = {title: _rate(device, dtype, side) for title, dtype in dtypes.items()}
    return Machine(name, packages, _bandwidth(device, 1 << 20 if smallest else 1 << 32), rates)


def _bandwidth(device: torch.device, size: int) -> float:
    # Random, since zeros are quicker than numbers on some devices.
    source = torch.empty(size // 8, dtype=torch.int64, device=device).random_().view(torch.uint8)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device)


def _rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2.0 * side**3 / seconds(lambda: torch.mm(left, right, out=out), device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Of one run: the best of `repeats`, after two to warm up."""
    best = float("inf")
    for attempt in range(repeats + 2):
        _settle(device)
        started = time.perf_counter()
        work()
        _settle(device)
        if attempt >= 2:
            best = min(best, time.perf_counter() - started)
    return best


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
