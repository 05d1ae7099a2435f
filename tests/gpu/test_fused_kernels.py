"""Triton's kernels between the matrix products, against the operations that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gpu.kv_pool import KvPool, KvShape
from gpu.rotary import Rotary
from tests.gpu import interpreted

if interpreted.DEVICE:
    from gpu.cuda.fused_kernels import add_norm, gated, turn_and_store

ROPE = {"rope_type": "default", "rope_theta": 10_000.0}

pytestmark = pytest.mark.timeout(300)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [64, 80])
@torch.inference_mode()
def test_residual_and_norm(size: int, dtype: torch.dtype) -> None:
    residual, delta = random(3, size, dtype=dtype), random(3, size, dtype=dtype) + 1
    weight, total = random(size, dtype=dtype), residual + delta
    bare = functional.rms_norm(residual, (size,), weight, 1e-5)
    # The interpreter cuts bfloat16 numbers off where a GPU rounds them.
    tolerance = {torch.float32: 1e-6, torch.float16: 5e-3, torch.bfloat16: 6e-2}[dtype]
    assert torch.allclose(add_norm(residual, None, weight, 1e-5), bare, atol=tolerance)
    out = add_norm(residual, delta, weight, 1e-5)
    assert torch.allclose(residual, total, atol=tolerance)
    assert torch.allclose(out, functional.rms_norm(total, (size,), weight, 1e-5), atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_gate(dtype: torch.dtype) -> None:
    both = random(3, 2 * 1500, dtype=dtype)
    gate, up = both.float().chunk(2, dim=1)
    expected = (functional.silu(gate) * up).to(dtype)
    assert torch.allclose(gated(both), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 1, 10), (2, 2, 80)])
@pytest.mark.parametrize("normed", [True, False])
@torch.inference_mode()
def test_rotation_and_pages(heads: int, kv_heads: int, dim: int, normed: bool) -> None:
    rows, cpu = 4, torch.device("cpu")
    pool = KvPool([KvShape(kv_heads, dim, dim)], 4, 4, torch.float32, cpu)
    pages = pool.layers[0]
    pages.keys.fill_(torch.nan), pages.values.fill_(torch.nan)
    rotary = Rotary(ROPE, dim, torch.float32, cpu)
    qkv = random(rows, (heads + 2 * kv_heads) * dim)
    norms = random(heads + kv_heads, dim) if normed else None
    positions, places = torch.tensor([0, 7, 3, 15]), torch.tensor([3, -1, 9, 0], dtype=torch.int32)
    split = qkv.view(rows, -1, dim)
    both = split[:, : heads + kv_heads]
    if norms is not None:
        both = functional.rms_norm(both, (dim,), None, 1e-6) * norms
    expected = rotary.apply(both, rotary.turn(positions))
    values = split[:, heads + kv_heads :].clone()
    query = turn_and_store(qkv, heads, rotary.tables(16), positions, norms, 1e-6, pages, places)
    assert torch.allclose(query, expected[:, :heads], atol=1e-5)
    kept = [0, 2, 3]
    written = places[kept].long()
    assert torch.allclose(pages.key_rows[written], expected[kept, heads:].flatten(1), atol=1e-5)
    assert torch.equal(pages.value_rows[written], values[kept].flatten(1))
    assert int((~pages.key_rows.isnan().any(1)).sum()) == len(kept)
