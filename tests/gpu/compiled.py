"""Compiles our Triton kernels for a Hopper GPU, which needs none, and prints the shared memory each takes.

Run as a program, without Triton's interpreter: `python -m tests.gpu.compiled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpu.cuda import attention_kernels, fused_kernels, grouped_kernels, quantized_kernels, sample_kernels

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


def main() -> None:
    """Every kernel, in the shapes of Qwen3-8B."""
    manner = {"CAPPED": True, "WINDOWED": True, "PRECISION": "tf32"}
    dims = {"KEY": 128, "VALUE": 128, "PAD_KEY": 128, "PAD_VALUE": 128}
    shape = {"GROUP": 4, "PAGE": 16, "BLOCK": 64, **manner, **dims}
    parts = {"SPLITS": 16, "LEAST": 256}
    whole, one = {"SPLITS": 0, "LEAST": 0, "SINKS": True}, {"TOKENS": 1, "SINKS": False}
    joined = {"HEADS": 32, "VALUE": 128, "PAD_VALUE": 128, "WINDOWED": True, "SINKS": True, **parts}
    rows = {"HEADS": 8, "PAD_HEADS": 8, "KEY": 128, "PAD_KEY": 128, "VALUE": 128, "PAD_VALUE": 128}
    heads = {"HEADS": 32, "KV_HEADS": 8, "BLOCK": 8, "DIM": 128, "HALF": 64, "PADDED": 64, "NORMS": True}
    warps, pipelined = {"num_warps": 4}, {"num_stages": 2}
    group = {"GROUPS": 128, "PADDED": 128, "WEIGHED": True, "ROWS": 64, "COLUMNS": 64, "BLOCK": 128}
    expert = {**group, "SHARED": 8, "ADDS": False, "NARROW_N": False, "NARROW_K": False, "PRECISION": "tf32"}
    adapter = {**expert, "SHARED": 1, "GROUPS": 8, "PADDED": 8, "ROWS": 16, "WEIGHED": False}
    many: dict[str, int] = {"num_warps": 4, "num_stages": 3}
    starts = {"starts": "*i64"}
    sampled = {"stride": "i64", "logits": "*fp32", "out": "*i64"}
    wide = {"logits_stride": "i64", "seen_stride": "i64", "logits": "*fp32", "rows": "*i64"}
    scaled, plain = {"SCALED": True}, {"SCALED": False}
    kept = {"keys": "*fp8e4nv", "values": "*fp8e4nv"}
    tile = {"BIAS": True, "ROWS": 64, "COLUMNS": 32, "BLOCK": 256, "PRECISION": "tf32"}
    weights = {"scale": "*fp32", "rows": "i32"}
    for kernel, constants, options, *types in (
        (quantized_kernels._product, tile, many, weights | {"numbers": "*i8"}),
        (quantized_kernels._product, tile, many, weights | {"numbers": "*fp8e4nv"}),
        (
            attention_kernels.attend,
            {**shape, **scaled, **whole, "TOKENS": 32, "ROWS": 128},
            {"num_warps": 8},
            kept,
        ),
        (attention_kernels.attend, {**shape, **scaled, **parts, **one, "ROWS": 16}, warps, kept),
        (attention_kernels.store, {**rows, **scaled}, warps, kept),
        (fused_kernels._turn_and_store, {**heads, **scaled}, warps, kept),
        (grouped_kernels._grouped, expert, many, starts),
        (grouped_kernels._grouped, {**adapter, "NARROW_N": True}, many, starts),
        (grouped_kernels._grouped, {**adapter, "NARROW_K": True, "ADDS": True}, many, starts),
        (sample_kernels._choose, {"BLOCK": 4096}, {"num_warps": 16}, sampled),
        (sample_kernels._penalise, {"OUTPUT": (1 << 30) - 1, "BLOCK": 1024}, warps, wide),
        (sample_kernels._count, {}, {"num_warps": 1}, wide),
        (attention_kernels.attend, {**shape, **plain, **whole, "TOKENS": 32, "ROWS": 128}, {"num_warps": 8}),
        (attention_kernels.attend, {**shape, **plain, **parts, **one, "ROWS": 16}, warps),
        (attention_kernels.join, joined, warps),
        (attention_kernels.store, {**rows, **plain}, warps),
        (fused_kernels._add_norm, {"SIZE": 4096, "PADDED": 4096, "ADDS": True}, warps),
        (fused_kernels._gated, {"SIZE": 12288, "BLOCK": 1024}, warps),
        (fused_kernels._turn_and_store, {**heads, **plain}, warps),
    ):
        print(kernel.__name__, compiled(kernel, constants, pipelined | options, *types))


if __name__ == "__main__":
    main()
