"""The kernels' way over the processor's tiles (AMX), with tiles in software: the same source, whatever the
processor. Where one has tiles, `gpu.cpu.start` compares them with its vectors before they are used."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from gpu.cpu import start
from gpu.cpu.fused import FusedDecoder, quantize
from gpu.cpu.library import UNITS, Kernels
from protocols.config import KernelChoice
from tests.gpu.driver import GREEDY, Driver
from tests.gpu.test_cpu_kernels import PROMPTS, compiled
from tests.gpu.tiny import make

_HEADER = pathlib.Path(__file__).parent / "emulated_tiles.h"
_PAIRS = 2 * UNITS
"""Numbers of a row that one instruction takes."""


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    """Two threads that multiply on emulated tiles."""
    version = hashlib.sha256(_HEADER.read_bytes()).hexdigest()[:8]
    made = compiled(2, "-O1", "-include", str(_HEADER), f"-DEMULATED_TILES=0x{version}")
    assert made.use_tiles(True)
    return made


@pytest.fixture(autouse=True)
def no_fault(kernels: Kernels) -> Iterator[None]:
    """Nothing was done that a processor refuses, and tiles were used."""
    kernels.use_tiles(True)
    before = _counted(kernels, "tile_products")
    yield
    assert _counted(kernels, "tile_faults") == 0
    assert _counted(kernels, "tile_products") > before


def _counted(kernels: Kernels, name: str) -> int:
    return int(getattr(kernels._library, name)())


def summed_as_tiles_do(weight: Tensor, x: Tensor) -> Tensor:
    """x W^T [m, n], with sums of even and odd numbers, then of both, then into what was there."""
    rows: npt.NDArray[np.float32] = np.zeros((len(x), len(weight)), np.float32)
    missing = -x.shape[1] % _PAIRS
    a, b = (np.pad(side.float().numpy(), ((0, 0), (0, missing))) for side in (x, weight))
    for k in range(0, a.shape[1], _PAIRS):
        halves = [np.zeros_like(rows), np.zeros_like(rows)]
        for i in range(_PAIRS):
            halves[i % 2] += np.outer(a[:, k + i], b[:, k + i])  # exact: 8 bits times 8 bits
        rows += halves[0] + halves[1]
    return torch.from_numpy(rows)


@pytest.mark.parametrize(("n", "k"), [(64, 32), (100, 40), (344, 256), (96, 330), (65, 1)])
def test_products_are_summed_as_tiles_do_in_any_crowd(kernels: Kernels, n: int, k: int) -> None:
    weight, x = start._random(torch.bfloat16, (n, k), (97, k))
    packed = kernels.pack(weight)
    expected = summed_as_tiles_do(weight, x)
    for rows in (1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 65, 97):
        assert torch.equal(kernels.linear(packed, x[:rows]), expected[:rows])
        assert torch.equal(kernels.linear(packed, x[-rows:]), expected[-rows:])
    kernels.use_tiles(False)
    assert torch.allclose(kernels.linear(packed, x), expected, atol=1e-4)


def test_eight_bits_become_bfloat16_for_tiles(kernels: Kernels) -> None:
    weight, x = start._random(torch.bfloat16, (100, 72), (50, 72))
    numbers, scale = quantize(weight.float())
    expected = summed_as_tiles_do(numbers.bfloat16(), x) * scale
    packed = kernels.pack(numbers, scale=scale)
    for rows in (1, 12, 13, 50):
        assert torch.equal(kernels.linear(packed, x[:rows]), expected[:rows])


def test_tiles_agree_with_torch(kernels: Kernels) -> None:
    """Products and attention over pages of all kinds, as at every start."""
    assert start.agrees(kernels, torch.bfloat16)


@pytest.mark.parametrize(("page_size", "head_dim"), [(16, 32), (4, 32), (16, 40)])
def test_a_model_s_logits_are_the_same_bits_in_any_crowd(
    kernels: Kernels, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, page_size: int, head_dim: int
) -> None:
    """Heads of 32 numbers are multiplied on tiles, of 40 on vectors where pages are laid out for these."""
    monkeypatch.setattr("gpu.loading.start", lambda *_: kernels)
    tiny = make(tmp_path, "Qwen3ForCausalLM", hidden_size=72, intermediate_size=100, head_dim=head_dim)
    options = {"kernels": KernelChoice.AUTO, "dtype": "bfloat16", "page_size": page_size}
    executor = tiny.executor(**options)
    assert isinstance(executor._model, FusedDecoder)
    crowd = Driver(executor, budget=64).generate(PROMPTS, 8, GREEDY)
    kernels.use_tiles(False)
    vectors = Driver(tiny.executor(**options), budget=64).generate(PROMPTS, 1, GREEDY)
    kernels.use_tiles(True)
    for prompt, together, other in zip(PROMPTS, crowd, vectors, strict=True):
        alone = Driver(executor, budget=9).generate([prompt], 8, GREEDY)[0]
        again = Driver(executor, budget=31).generate([[*prompt, *together.tokens[:5]]], 3, GREEDY)[0]
        assert alone.tokens == together.tokens and alone.logprobs == together.logprobs
        assert again.tokens == together.tokens[5:] and again.logprobs == together.logprobs[5:]
        assert np.allclose(together.logprobs[0].chosen, other.logprobs[0].chosen, atol=0.05)
