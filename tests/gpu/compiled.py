"""Compiles our Triton kernels for a Hopper GPU, which needs none, and prints the shared memory each takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpu.cuda import attention_kernels, fused_kernels, grouped_kernels, product_kernels

HOPPER = GPUTarget("cuda", 90, 32)
_TYPES = {
    "*i64": ("positions", "order", "rows", "numbers", "lengths", "seen", "tokens"),
    "*i32": ("starts", "contexts", "tables", "places", "widths", "counts"),
    "*fp32": (
        "partial",
        "levels",
        "key_scales",
        "value_scales",
        "cos",
        "sin",
        "factors",
        "scales",
        "bests",
        "floors",
        "strengths",
    ),
    "*fp64": ("top_ks", "top_ps", "points"),
    "fp32": ("scale", "cap", "eps"),
    "i32": ("window", "n", "k", "vocab"),
}
"""Of arguments by name."""


def compiled(
    kernel: Any,
    constants: dict[str, Any],
    options: dict[str, int],
    types: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Bytes of shared memory. What is no constant is of its type in `types`, or what its name says, or a
    bfloat16 tensor."""
    signature = {
        name: "constexpr" if name in constants else types.get(name, _type(name)) for name in kernel.arg_names
    }
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    return int(triton.compile(source, target=HOPPER, options=options).metadata.shared)


def _type(name: str) -> str:
    found = next((kind for kind, names in _TYPES.items() if name in names), "")
    if found:
        return found
    return "i32" if name.endswith(("_stride", "_row", "_head")) or name == "stride" else "*bf16"


def compile_all() -> None:
    """What `tests.gpu.launched` does not come to, in the shapes of Qwen3-8B."""
    manner = {"CAPPED": True, "WINDOWED": True, "PRECISION": "tf32"}
    dims = {"KEY": 128, "VALUE": 128, "PAD_KEY": 128, "PAD_VALUE": 128}
    shape = {"GROUP": 4, "PAGE": 16, "BLOCK": 64, **manner, **dims}
    parts = {"SPLITS": 16, "LEAST": 256}
    whole, one = {"SPLITS": 0, "LEAST": 0, "SINKS": True}, {"TOKENS": 1, "SINKS": False}
    joined = {"HEADS": 32, "VALUE": 128, "PAD_VALUE": 128, "WINDOWED": True, "SINKS": True, **parts}
    rows = {"HEADS": 8, "PAD_HEADS": 8, "KEY": 128, "PAD_KEY": 128, "VALUE": 128, "PAD_VALUE": 128}
    group = {
        "GROUPS": 128,
        "PADDED": 128,
        "WEIGHED": True,
        "SCALED": False,
        "ROWS": 64,
        "COLUMNS": 64,
        "BLOCK": 128,
    }
    expert = {**group, "SHARED": 8, "ADDS": False, "NARROW_N": False, "NARROW_K": False, "PRECISION": "tf32"}
    tile = {"BIAS": True, "SCALED": True, "ROWS": 64, "COLUMNS": 32, "BLOCK": 256, "PRECISION": "tf32"}
    warps, many, pipelined = {"num_warps": 4}, {"num_warps": 4, "num_stages": 3}, {"num_stages": 2}
    scaled, plain = {"SCALED": True}, {"SCALED": False}
    kept = {"keys": "*fp8e4nv", "values": "*fp8e4nv"}
    weights = {"scale": "*fp32", "rows": "i32", "numbers": "*fp8e4nv"}
    prefill = {**shape, **scaled, **whole, "TOKENS": 32, "ROWS": 128}
    for kernel, constants, options, *types in (
        (product_kernels._product, tile, many, weights),
        (attention_kernels.attend, prefill, {"num_warps": 8}, kept),
        (attention_kernels.attend, {**shape, **plain, **parts, **one, "ROWS": 16}, warps),
        (attention_kernels.join, joined, warps),
        (attention_kernels.store, {**rows, **scaled}, warps, kept),
        (grouped_kernels._grouped, expert, many, {"starts": "*i64"}),
        (grouped_kernels._grouped, expert | scaled, many, {"starts": "*i64", "weights": "*fp8e4nv"}),
        (fused_kernels._add_norm, {"SIZE": 4096, "PADDED": 4096, "ADDS": True}, warps),
    ):
        print("ready", kernel.__name__, compiled(kernel, constants, pipelined | options, *types))
