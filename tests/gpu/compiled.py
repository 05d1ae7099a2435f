"""Compiles our Triton kernels for a Hopper GPU, which needs none, and prints the shared memory each takes.

Run as a program, without Triton's interpreter: `python -m tests.gpu.compiled`.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpu.cuda import attention_kernels, fused_kernels

HOPPER = GPUTarget("cuda", 90, 32)
_INTEGERS = ("positions", "starts", "contexts", "tables", "places")
_FLOATS = ("scale", "cap", "eps")


def compiled(kernel: Any, constants: dict[str, Any], options: dict[str, int]) -> int:
    """Bytes of shared memory. What is no constant is a bfloat16 tensor, or what its name says."""
    signature = {name: "constexpr" if name in constants else _type(name) for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    return int(triton.compile(source, target=HOPPER, options=options).metadata.shared)


def _type(name: str) -> str:
    if name in _INTEGERS:
        return "*i64" if name == "positions" else "*i32"
    if name in ("partial", "levels", "cos", "sin"):
        return "*fp32"
    if name in _FLOATS:
        return "fp32"
    scalar = name == "window" or name.endswith(("_stride", "_row", "_head"))
    return "i32" if scalar else "*bf16"


def main() -> None:
    """Every kernel, in the shapes of Qwen3-8B."""
    manner = {"CAPPED": True, "WINDOWED": True, "PRECISION": "tf32"}
    dims = {"KEY": 128, "VALUE": 128, "PAD_KEY": 128, "PAD_VALUE": 128}
    shape = {"GROUP": 4, "PAGE": 16, "BLOCK": 64, **manner, **dims}
    parts = {"SPLITS": 16, "LEAST": 256}
    whole, one = {"SPLITS": 0, "LEAST": 0, "SINKS": True}, {"TOKENS": 1, "SINKS": False}
    joined = {"HEADS": 32, "VALUE": 128, "PAD_VALUE": 128, "WINDOWED": True, "SINKS": True, **parts}
    rows = {"KEY": 128, "KEYS": 1024, "PAD_KEYS": 1024, "VALUE": 128, "VALUES": 1024, "PAD_VALUES": 1024}
    heads = {"HEADS": 32, "KV_HEADS": 8, "BLOCK": 8, "DIM": 128, "HALF": 64, "PADDED": 64, "NORMS": True}
    warps, pipelined = {"num_warps": 4}, {"num_stages": 2}
    for kernel, constants, options in (
        (attention_kernels.attend, {**shape, **whole, "TOKENS": 32, "ROWS": 128}, {"num_warps": 8}),
        (attention_kernels.attend, {**shape, **parts, **one, "ROWS": 16}, warps),
        (attention_kernels.join, joined, warps),
        (attention_kernels.store, rows, warps),
        (fused_kernels._add_norm, {"SIZE": 4096, "PADDED": 4096, "ADDS": True}, warps),
        (fused_kernels._gated, {"SIZE": 12288, "BLOCK": 1024}, warps),
        (fused_kernels._turn_and_store, heads, warps),
    ):
        print(kernel.__name__, compiled(kernel, constants, options | pipelined))


if __name__ == "__main__":
    main()
