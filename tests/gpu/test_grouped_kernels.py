"""One product of rows that each go through a matrix of their own: experts, and the factors of adapters."""

from __future__ import annotations

import pathlib

import pytest
import torch

from tests.gpu import interpreted
from tests.gpu.driver import GREEDY, Driver
from tests.gpu.tiny import make, prompts

if interpreted.DEVICE:
    from gpu.cuda.grouped_kernels import Groups, grouped

from gpu.quantized import Quantized
from protocols.config import KernelChoice, Quantization

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("items", "count"), [(5, 3), (150, 2)])
@torch.inference_mode()
def test_every_row_meets_its_own_matrix(items: int, count: int, dtype: torch.dtype) -> None:
    """Few rows and many, ranks of their own, rows of no group, and a group that nobody asks for."""
    generator = torch.Generator().manual_seed(items)
    x, weights = (
        torch.randn(*size, generator=generator).to(dtype) for size in ((items, 40), (count, 70, 40))
    )
    numbers = torch.randint(-1, count - 1, (items,), generator=generator)
    numbers[0], numbers[-1] = count - 1, -1
    ranks = torch.tensor([16, 32, 16], dtype=torch.int32)[:count]
    factors = torch.rand(items, generator=generator)
    groups = Groups.of(numbers, count)
    before = torch.randn(items, 70, generator=generator).to(dtype)
    products = torch.stack([x[i].double() @ weights[numbers[i]].double().T for i in range(items)])
    there = (numbers >= 0)[:, None]
    close = {"atol": 1e-4 if dtype == torch.float32 else 0.05, "rtol": 0.0}

    def same(got: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(got.double(), torch.where(there, expected, before.double()), **close)

    same(grouped(x, weights, groups, before.clone()), products)
    same(grouped(x, weights, groups, before.clone(), adds=True), products + before)
    same(grouped(x, weights, groups, before.clone(), factors=factors), products * factors[:, None])
    narrow = grouped(x, weights, groups, before.clone(), rows=ranks)
    kept = torch.arange(70) < ranks[numbers][:, None]
    same(narrow, torch.where(kept, products, before))
    short = torch.where(torch.arange(40) < ranks[numbers][:, None], x, 0).double()
    partial = torch.stack([short[i] @ weights[numbers[i]].double().T for i in range(items)])
    same(
        grouped(x.masked_fill(short == 0, torch.nan), weights, groups, before.clone(), columns=ranks), partial
    )


@torch.inference_mode()
def test_rows_are_shared_by_items() -> None:
    x, weights = torch.randn(4, 16), torch.randn(3, 16, 16)
    numbers = torch.tensor([0, 2, 1, 0, 2, 2, 1, 0])
    out = grouped(x, weights, Groups.of(numbers, 3), torch.empty(8, 16), shared=2)
    expected = torch.stack([weights[group] @ x[item // 2] for item, group in enumerate(numbers.tolist())])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("kind", [Quantization.INT8, Quantization.FP8])
@torch.inference_mode()
def test_matrices_of_8_bits(kind: Quantization) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(9, 40, generator=generator), torch.randn(3 * 70, 40, generator=generator)
    kept, numbers = Quantized.of(weights, kind), torch.tensor([0, 2, 2, 0, 2, 2, 0, 0, 2])
    whole, out = kept.rows().view(3, 70, 40), torch.empty(9, 70)
    expected = torch.stack([whole[group] @ x[row] for row, group in enumerate(numbers.tolist())])
    stacked, scale = kept.numbers.view(3, 70, 40), kept.scale.view(3, 70)
    grouped(x, stacked, Groups.of(numbers, 3), out, scale=scale)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_a_mixture_on_triton_is_exact(
    activation: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu.attention.triton_paged._PROGRAMS", 2)
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    tiny = make(
        tmp_path, "Qwen3MoeForCausalLM", head_dim=16, num_hidden_layers=1, hidden_act=activation, **sizes
    )
    executor = tiny.executor(kernels=KernelChoice.TORCH, attention_backend="triton")
    asked = prompts(9, 3)
    for prompt, output in zip(asked, Driver(executor, budget=8).generate(asked, 3, GREEDY), strict=True):
        tiny.check(prompt, output)
