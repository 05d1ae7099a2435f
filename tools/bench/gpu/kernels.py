"""Each Triton kernel on this device beside what it stands for: is it right, and how long does it take."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gpu import draw
from gpu.cuda.graphs import CudaRecorder
from gpu.cuda.tuning import GraphClock
from gpu.device import runs_triton
from gpu.kv_pool import EIGHT_BITS, KvPool, KvShape
from gpu.models.spec import DecoderSpec
from gpu.quantized import Quantized
from gpu.tiling import LIMITS, TILINGS
from protocols.config import Quantization
from tools.bench.gpu.machine import Machine, seconds

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """rows: of decodes. decodes: (rows, context) of attention alone. vocab: of the sampler. experts: count,
    chosen, inner and hidden size. rank: of adapters."""

    rows: tuple[int, ...]
    decodes: tuple[tuple[int, int], ...]
    vocab: int
    experts: tuple[int, int, int, int]
    rank: int


FULL = Sizes(
    (1, 16, 64, 256), ((1, 1024), (1, 16384), (64, 1024), (64, 8192)), 151936, (128, 8, 768, 2048), 16
)
SMALLEST = Sizes((3,), ((2, 40),), 300, (4, 2, 16, 32), 16)


def parts(
    device: torch.device, spec: DecoderSpec, machine: Machine, sizes: Sizes
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What there is to measure. By kernel: `right`, the error, microseconds of ours and of what it stands
    for. spec: whose products are measured. On a CPU Triton's interpreter runs, in float32, since it has no
    products of bfloat16."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    every: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
        "attention": lambda: _kept(device, dtype),
        "decodes": lambda: _decoded(device, dtype, spec, machine, sizes),
        "sampling": lambda: _sampled(device, sizes),
        "products": lambda: _products(device, dtype, spec, machine, sizes),
        "experts": lambda: _experts(device, dtype, sizes),
        "adapters": lambda: _adapted(device, dtype, sizes),
    }
    return {name: functools.partial(_run, device, part) for name, part in every.items()}


@torch.inference_mode()
def _run(device: torch.device, part: Callable[[], Iterator[tuple[str, Any]]]) -> dict[str, Any]:
    torch.manual_seed(0)
    return dict(part()) if runs_triton(device) else {"refused": "Triton is not here"}


def _row(
    ours: Callable[[], Any], theirs: Callable[[], Any], device: torch.device, error: float, most: float
) -> dict[str, Any]:
    repeats = 10 if device.type == "cuda" else 1
    times = [seconds(work, device, repeats) * 1e6 for work in (ours, theirs)]
    return {"right": error <= most, "error": error, "us": times[0], "torch_us": times[1]}


def _error(found: Tensor, expected: Tensor) -> float:
    """Relative; not a number never passes."""
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    return error if error == error else float("inf")


def _sampled(device: torch.device, sizes: Sizes) -> Iterator[tuple[str, Any]]:
    from gpu.cuda import sample_kernels

    for rows in sizes.rows:
        logits = torch.randn(rows, sizes.vocab, device=device) * 3
        best, every = logits.amax(1), torch.arange(rows, device=device)
        for name, top_k, top_p in (("top-p 0.9", sizes.vocab, 0.9), ("top-k 50, top-p 0.9", 50, 0.9)):
            columns = [1.0, float(top_k), top_p, 0.0]
            one, count, share, none = (
                torch.full((rows, 1), each, dtype=torch.float64, device=device) for each in columns
            )
            point = torch.rand(rows, 1, dtype=torch.float64, device=device)
            nobody = every[:0]
            kinds = (every, nobody) if top_k < sizes.vocab else (nobody, every)
            limits = draw.Limits(one, count, share, none, point, *kinds, top_k)
            asked = logits, every, best, limits
            ours, theirs = (functools.partial(way, *asked) for way in (sample_kernels.choose, draw.choose))
            wrong = float((ours() != theirs()).double().mean())
            # One ulp of an exponential between the two is rare, and moves a token where it falls on its edge.
            yield f"sampling {rows}, {name}", _row(ours, theirs, device, wrong, 0.02)


def _experts(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Iterator[tuple[str, Any]]:
    from gpu.cuda.grouped_kernels import Groups, grouped

    experts, chosen, inner, hidden = sizes.experts
    weights = torch.randn(experts, 2 * inner, hidden, device=device).to(dtype) * hidden**-0.5
    kept = {kind: _in_eight_bits(weights, kind) for kind in (Quantization.INT8, Quantization.FP8)}
    for rows in sizes.rows:
        x = torch.randn(rows, hidden, device=device).to(dtype)
        asked = torch.rand(rows, experts, device=device).topk(chosen).indices.flatten()
        groups = Groups.of(asked, experts)
        out = torch.empty(len(asked), 2 * inner, dtype=dtype, device=device)
        expected = torch.stack([weights[e] @ x[i // chosen] for i, e in enumerate(asked.tolist())])
        ends = groups.starts[1:].to(torch.int32)

        def ours(x: Tensor = x, groups: Any = groups, out: Tensor = out) -> Tensor:
            return grouped(x, weights, groups, out, shared=chosen)

        def theirs(x: Tensor = x, order: Tensor = groups.order, ends: Tensor = ends) -> Tensor:
            return functional.grouped_mm(x[order // chosen], weights.transpose(1, 2), offs=ends)

        yield f"experts {rows}", _row(ours, theirs, device, _error(ours(), expected), _TOLERANCE[dtype])
        for kind, (numbers, scale) in kept.items():
            eight = functools.partial(grouped, x, numbers, groups, out, shared=chosen, scale=scale)
            whole = (numbers.to(dtype) * scale[:, :, None]).to(dtype)
            exact = torch.stack([whole[e] @ x[i // chosen] for i, e in enumerate(asked.tolist())])
            yield (
                f"experts {rows}, {kind}",
                _row(eight, ours, device, _error(eight(), exact), _TOLERANCE[dtype]),
            )


def _in_eight_bits(weights: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    """Matrices [experts, n, k], and the scale of each row of them."""
    found = Quantized.of(weights.flatten(0, 1), kind)
    return found.numbers.view(weights.shape), found.scale.view(weights.shape[:2])


def _adapted(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Iterator[tuple[str, Any]]:
    from gpu.cuda.grouped_kernels import Groups, grouped

    slots, hidden = 4, sizes.experts[3]
    down = torch.randn(slots, sizes.rank, hidden, device=device).to(dtype) * hidden**-0.5
    up = torch.randn(slots, hidden, sizes.rank, device=device).to(dtype)
    ranks = torch.full((slots,), sizes.rank, dtype=torch.int32, device=device)
    for rows in sizes.rows:
        x, y = (torch.randn(rows, hidden, device=device).to(dtype) for _ in range(2))
        adapters = torch.arange(rows, device=device) % (slots + 1) - 1
        groups = Groups.of(adapters, slots)

        def adapted(x: Tensor = x, y: Tensor = y, groups: Any = groups) -> Tensor:
            middle = x.new_empty(len(x), sizes.rank)
            grouped(x, down, groups, middle, rows=ranks)
            return grouped(middle, up, groups, y.clone(), columns=ranks, adds=True)

        def one_by_one(x: Tensor = x, y: Tensor = y, adapters: Tensor = adapters) -> Tensor:
            chosen_down, chosen_up = down[adapters.clamp(min=0)], up[adapters.clamp(min=0)]
            change = (chosen_up @ (chosen_down @ x[:, :, None]))[:, :, 0]
            return torch.where((adapters >= 0)[:, None], y + change, y)

        error = _error(adapted(), one_by_one())
        yield f"adapters {rows}", _row(adapted, one_by_one, device, error, _TOLERANCE[dtype])


def _kept(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    """Keys and values of 8 bits: what our kernels put and read is what torch's operations do."""
    from gpu.attention.base import Backend, Batch, Spec
    from gpu.attention.paged import PagedAttention
    from gpu.attention.torch_sdpa import TorchAttention
    from gpu.attention.triton_paged import TritonKernel, store

    for stored in (None, EIGHT_BITS) if device.type == "cuda" else (None,):
        pool = KvPool([KvShape(2, 64, 64)], 16, 16, dtype, device, stored)
        at, lengths = np.arange(40), np.array([40], np.int64)
        batch = Batch(lengths, lengths, np.arange(16, dtype=np.int32)[None], at, at, 0)
        query, key, value = (torch.randn(40, heads, 64, device=device).to(dtype) for heads in (8, 2, 2))
        kernel = TritonKernel(pool)
        backends: tuple[Backend, ...] = PagedAttention(pool, kernel, kernel, store), TorchAttention(pool)
        ours, theirs = (
            functools.partial(backend.prepare(batch).attend, 0, query, key, value, Spec(0.125))
            for backend in backends
        )
        name = "attention" if stored is None else "attention, KV of 8 bits"
        yield name, _row(ours, theirs, device, _error(ours(), theirs()), _TOLERANCE[dtype])


def _decoded(
    device: torch.device, dtype: torch.dtype, spec: DecoderSpec, machine: Machine, sizes: Sizes
) -> Iterator[tuple[str, Any]]:
    """Attention of decodes alone, by how small the parts of a context may be. roofline: of the keys and
    values that are read."""
    from gpu.attention.base import Spec
    from gpu.attention.paged import Rows
    from gpu.attention.triton_paged import TritonKernel

    for rows, context in sizes.decodes:
        pages = -(-context // 16)
        copies = max(1, min(8, (256 << 20) // (rows * context * spec.kv.elements * dtype.itemsize)))
        if device.type != "cuda":
            copies = 1
        pool = KvPool([spec.kv] * copies, rows * pages, 16, dtype, device)
        for layer in pool.layers:
            layer.keys.normal_(), layer.values.normal_()
        tables = torch.randperm(rows * pages, device=device).to(torch.int32).view(rows, pages)
        starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        contexts = torch.full((rows,), context, dtype=torch.int32, device=device)
        query = torch.randn(rows, spec.heads, spec.head_dim, device=device).to(dtype)
        for least in (128, 256, 512):
            kernel = TritonKernel(pool, least=least)
            attend = kernel.prepare(Rows(starts, contexts, tables, 1, context))
            asked = [(layer, query, Spec(spec.head_dim**-0.5), None) for layer in pool.layers]
            taken = _each(attend, asked, device)
            read = rows * context * spec.kv.elements * dtype.itemsize
            found = {"us": taken * 1e6, "roofline": read / machine.bandwidth / taken}
            yield f"{rows} of {context}, parts of {least}", found


def _products(
    device: torch.device, dtype: torch.dtype, spec: DecoderSpec, machine: Machine, sizes: Sizes
) -> Iterator[tuple[str, Any]]:
    """Every linear map by itself, as it is and in 8 bits. roofline: its bytes over the measured bandwidth."""
    from gpu.cuda.product_kernels import product

    query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    maps = {
        "qkv": (query + 2 * key, spec.hidden),
        "output": (spec.hidden, query),
        "gate and up": (2 * spec.intermediate, spec.hidden),
        "down": (spec.hidden, spec.intermediate),
    }
    for name, (n, k) in maps.items():
        # Several, so that none is found in the cache.
        copies = max(1, min(8, (256 << 20) // (n * k * 2))) if device.type == "cuda" else 1
        weights = [torch.randn(n, k, device=device).to(dtype) * k**-0.5 for _ in range(copies)]
        kinds = (Quantization.INT8, Quantization.FP8)
        held = {kind: [Quantized.of(weight, kind) for weight in weights] for kind in kinds}
        ways = TILINGS if device.type == "cuda" else TILINGS[:1]  # the interpreter is slow
        for rows in (rows for rows in sizes.rows if rows <= 64):
            x = torch.randn(rows, k, device=device).to(dtype)
            whole = [(weight,) for weight in weights]
            found = {"the library": _timed(functools.partial(functional.linear, x), whole, device, machine)}
            for tiling in ways if rows <= LIMITS[-1] else ():
                exact = functional.linear(x.float(), weights[0].float())
                cut: list[tuple[Any, ...]] = [(weight, None, None, tiling) for weight in weights]
                found[str(tiling)] = _checked(functools.partial(product, x), cut, exact, device, machine)
            for kind, matrices in held.items():
                exact = functional.linear(x.float(), matrices[0].rows().float())
                cut = [(each.numbers, each.scale, None) for each in matrices]
                found[str(kind)] = _checked(functools.partial(product, x), cut, exact, device, machine)
            yield f"{name} {rows}", found


def _checked(
    work: Callable[..., Tensor],
    asked: list[tuple[Any, ...]],
    exact: Tensor,
    device: torch.device,
    machine: Machine,
) -> dict[str, Any]:
    """`_timed`, and how far the first of the products is from what it should be."""
    got = work(*asked[0])
    error = _error(got, exact)
    right = {"right": error <= _TOLERANCE[got.dtype], "error": error}
    return right | _timed(work, asked, device, machine)


def _timed(
    work: Callable[..., Any], asked: list[tuple[Any, ...]], device: torch.device, machine: Machine
) -> dict[str, Any]:
    """Of one of several pieces of work after another; the first thing that each reads is its matrix."""
    taken = _each(work, asked, device)
    return {"us": taken * 1e6, "roofline": asked[0][0].nbytes / machine.bandwidth / taken}


def _each(work: Callable[..., Any], asked: list[tuple[Any, ...]], device: torch.device) -> float:
    """Seconds of one of several pieces of work after another, on a GPU without their launches."""

    def every() -> None:
        for each in asked:
            work(*each)

    clock = GraphClock(device, CudaRecorder(device)) if device.type == "cuda" else None
    return (seconds(every, device, 1) if clock is None else clock(every)) / len(asked)
