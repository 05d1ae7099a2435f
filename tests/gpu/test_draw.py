"""The draw, on any device and on the CPU, against exact arithmetic and against the distribution it claims."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpu import draw
from gpu.draw_cpu import CpuDraw, DrawKind
from gpu.philox import uniforms

LIMITS = np.dtype([("temperature", "f8"), ("top_k", "i8"), ("top_p", "f8"), ("min_p", "f8"), ("kind", "u1")])


@dataclasses.dataclass(frozen=True)
class Limits:
    """Parameters of a row; top_k 0 is off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def kind(self) -> DrawKind:
        """The path that the CPU takes."""
        if self.top_k:
            return DrawKind.RANK
        if self.top_p < 1:
            return DrawKind.MASS
        return DrawKind.RATIO if self.min_p else DrawKind.FREE


KINDS = [
    Limits(),
    Limits(temperature=0.3),
    Limits(temperature=3.0),
    Limits(top_k=5),
    Limits(top_k=2, temperature=2.0),
    Limits(top_p=0.9),
    Limits(top_p=0.1, temperature=2.0),
    Limits(min_p=0.1),
    Limits(temperature=0.7, top_k=20, top_p=0.8),
    Limits(temperature=1.5, top_k=12, top_p=0.9, min_p=0.2),
    Limits(top_p=0.95, min_p=0.02),
]


def _on_cpu(logits: torch.Tensor, limits: list[Limits], uniform: np.ndarray) -> list[int]:
    vocab = logits.shape[1]
    records = np.zeros(len(limits), LIMITS)
    for record, row in zip(records, limits, strict=True):
        record["temperature"], record["top_k"] = row.temperature, row.top_k or vocab
        record["top_p"], record["min_p"], record["kind"] = row.top_p, row.min_p, row.kind()
    tokens, best = CpuDraw(vocab).choose(logits, records, uniform)
    assert np.array_equal(best, logits.float().numpy().max(1))
    return tokens.tolist()


def _on_any_device(
    logits: torch.Tensor, limits: list[Limits], uniform: np.ndarray, choose: Any = draw.choose
) -> list[int]:
    vocab = logits.shape[1]
    columns = [
        [row.temperature for row in limits],
        [row.top_k or vocab for row in limits],
        [row.top_p for row in limits],
        [row.min_p for row in limits],
        uniform.tolist(),
    ]
    by_kind = [
        torch.tensor([i for i, row in enumerate(limits) if row.kind() == kind], dtype=torch.int64)
        for kind in (DrawKind.RANK, DrawKind.MASS)
    ]
    numbers = torch.tensor(columns, dtype=torch.float64)[:, :, None]
    deepest = max([row.top_k for row in limits] + [1])
    on_device = draw.Limits(*numbers, *by_kind, deepest)
    return choose(logits, torch.arange(len(limits)), logits.amax(1).float(), on_device).tolist()


def _in_triton(logits: torch.Tensor, limits: list[Limits], uniform: np.ndarray) -> list[int]:
    pytest.importorskip(
        "triton", minversion="3.7", reason="Triton is not installed: its kernels are not tested."
    )
    from gpu.cuda import sample_kernels

    return _on_any_device(logits, limits, uniform, sample_kernels.choose)


def _powers(logits: torch.Tensor, limits: Limits) -> np.ndarray:
    best, temperature = logits.max()[None, None], torch.tensor([[limits.temperature]])
    return draw.exponentials(logits[None], best, temperature, torch.empty((1, len(logits))))[0].numpy()


def _kept(logits: torch.Tensor, limits: Limits) -> np.ndarray:
    """Weights after the restrictions, by sorting and plain integers."""
    powers, scores = _powers(logits, limits), logits.numpy()
    weights = [int(float(power)) for power in powers]
    order = sorted(range(len(powers)), key=lambda token: -scores[token])
    if limits.top_k:
        last = scores[order[min(limits.top_k, len(order)) - 1]]
        order = [token for token in order if scores[token] >= last]
    needed = math.ceil(sum(weights[token] for token in order) * limits.top_p)
    reached = 0
    for token in order:
        reached += weights[token]
        last = powers[token]
        if reached >= needed:
            break
    least = max(last, np.float32(limits.min_p) * np.float32(draw.SCALE))
    kept = set(order)
    return np.array(
        [weights[token] if token in kept and powers[token] >= least else 0 for token in range(len(powers))]
    )


def _exactly(logits: torch.Tensor, limits: list[Limits], uniform: np.ndarray) -> list[int]:
    tokens = []
    for row, limit, number in zip(logits, limits, uniform, strict=True):
        weights = _kept(row, limit)
        target = int(number * float(weights.sum()))
        tokens.append(int(np.flatnonzero(np.cumsum(weights) > target)[0]))
    return tokens


@pytest.mark.parametrize("vocab", [1, 2, 7, 64, 100, 128, 1000, 4096])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_both_ways_find_the_exact_token(vocab: int, spread: float) -> None:
    rng = np.random.default_rng(vocab)
    limits = [dataclasses.replace(kind, top_k=min(kind.top_k, vocab)) for kind in KINDS] * 2
    logits = torch.from_numpy(rng.normal(0, spread, (len(limits), vocab)).astype(np.float32))
    uniform = rng.random(len(limits))
    uniform[0], uniform[-1] = 0.0, 1 - 2.0**-53
    expected = _exactly(logits, limits, uniform)
    assert _on_cpu(logits, limits, uniform) == expected
    assert _on_any_device(logits, limits, uniform) == expected


@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
def test_every_cut_of_a_large_vocabulary_finds_the_exact_token(spread: float) -> None:
    rng = np.random.default_rng(2)
    limits = [
        Limits(),
        Limits(top_p=0.5),
        Limits(top_p=0.999),
        Limits(top_k=50),
        Limits(top_k=2000, top_p=0.99),
    ]
    logits = torch.from_numpy(rng.normal(0, spread, (len(limits), 70_001)).astype(np.float32))
    logits[:, -1] = -torch.inf
    uniform = rng.random(len(limits))
    uniform[0] = 1 - 2.0**-53
    expected = _exactly(logits, limits, uniform)
    assert _on_cpu(logits, limits, uniform) == expected
    assert _on_any_device(logits, limits, uniform) == expected


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties_are_kept_together(levels: int) -> None:
    """bfloat16 logits tie often: no order among equals may decide."""
    rng = np.random.default_rng(levels)
    limits = KINDS * 3
    logits = torch.from_numpy(rng.integers(0, levels, (len(limits), 300)).astype(np.float32))
    uniform = rng.random(len(limits))
    expected = _exactly(logits, limits, uniform)
    assert _on_cpu(logits, limits, uniform) == expected
    assert _on_any_device(logits, limits, uniform) == expected


def test_tokens_that_are_out_stay_out() -> None:
    limits = KINDS * 2
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(0, 2, (len(limits), 500)).astype(np.float32))
    logits[:, ::2] = -torch.inf
    uniform = rng.random(len(limits))
    expected = _exactly(logits, limits, uniform)
    assert all(token % 2 for token in expected)
    assert _on_cpu(logits, limits, uniform) == expected
    assert _on_any_device(logits, limits, uniform) == expected


@pytest.mark.parametrize("vocab", [1, 4100])
def test_the_kernel_of_a_gpu_finds_the_exact_token(vocab: int) -> None:
    """Among ties, ends of the vocabulary, tokens that are out, and the least and greatest numbers."""
    rng = np.random.default_rng(vocab)
    kinds = [KINDS[2], KINDS[3], KINDS[5], KINDS[8], KINDS[9], KINDS[10]]
    limits = [dataclasses.replace(kind, top_k=min(kind.top_k, vocab)) for kind in kinds]
    logits = torch.from_numpy(rng.normal(0, 3, (len(limits), vocab)).astype(np.float32))
    logits[:, 1::3] = -torch.inf
    logits[1:4] = (logits[1:4] * 0.5).round()
    uniform = rng.random(len(limits))
    uniform[0], uniform[-1] = 0.0, 1 - 2.0**-53
    expected = _exactly(logits, limits, uniform)
    assert _in_triton(logits, limits, uniform) == expected == _on_any_device(logits, limits, uniform)


@pytest.mark.parametrize("way", [_on_cpu, _on_any_device])
@pytest.mark.parametrize("vocab", [333, 4099])
def test_a_row_is_alone_in_any_crowd(way: Any, vocab: int) -> None:
    """Bit for bit: any rows, any order, any number, and rows that are not even numbers beside it."""
    rng = np.random.default_rng(3)
    limits = KINDS * 6
    logits = torch.from_numpy(rng.normal(0, 2, (len(limits), vocab)).astype(np.float32))
    uniform = rng.random(len(limits))
    alone = [way(logits[i : i + 1], limits[i : i + 1], uniform[i : i + 1])[0] for i in range(len(limits))]
    assert way(logits, limits, uniform) == alone
    for _ in range(5):
        some = rng.permutation(len(limits))[: rng.integers(2, len(limits))]
        crowd = way(logits[torch.from_numpy(some)], [limits[i] for i in some], uniform[some])
        assert crowd == [alone[i] for i in some]


def test_the_greatest_uniform_number_draws_the_last_token_that_is_in() -> None:
    logits = torch.randn(32, 1000, generator=torch.Generator().manual_seed(0)) * 0.1
    logits[:, -1] = -torch.inf
    uniform = np.full(32, 1 - 2.0**-53)
    assert _on_cpu(logits, [Limits()] * 32, uniform) == [998] * 32
    assert _on_any_device(logits, [Limits()] * 32, uniform) == [998] * 32


def test_the_greatest_uniform_number_stays_below_totals_that_doubles_round() -> None:
    random = np.random.default_rng(5)
    rows = random.integers(2**43, 2**44, size=(64, 2048), dtype=np.int64)
    rows[0], rows[1] = 2**44, 2**44 - 1  # a power of two, and what is rounded up to one
    weights = torch.from_numpy(np.pad(rows, ((0, 0), (0, draw.BLOCK))))
    assert int(weights[2].sum()) > 2**53
    drawn = draw.draw(weights, torch.full((64, 1), 1 - 2**-53, dtype=torch.float64))
    assert drawn.tolist() == [2047] * 64


def test_a_broken_row_leaves_its_tile_in_order() -> None:
    rng = np.random.default_rng(4)
    limits = KINDS * 2
    logits = torch.from_numpy(rng.normal(0, 2, (len(limits), 200)).astype(np.float32))
    uniform = rng.random(len(limits))
    expected = _on_cpu(logits, limits, uniform)
    broken = logits.clone()
    broken[1, 7], broken[4] = torch.nan, -torch.inf
    broken[8, 9] = torch.inf
    records = np.zeros(len(limits), LIMITS)
    for record, row in zip(records, limits, strict=True):
        record["temperature"], record["top_k"] = row.temperature, row.top_k or 200
        record["top_p"], record["min_p"], record["kind"] = row.top_p, row.min_p, row.kind()
    tokens, best = CpuDraw(200).choose(broken, records, uniform)
    assert np.flatnonzero(~np.isfinite(best)).tolist() == [1, 4, 8]
    fine = np.isfinite(best)
    assert tokens[fine].tolist() == [token for token, ok in zip(expected, fine, strict=True) if ok]


def _reference(logits: torch.Tensor, limits: Limits) -> torch.Tensor:
    """Probabilities by way of transformers' processors, in their order."""
    scores = TemperatureLogitsWarper(limits.temperature)(None, logits[None])
    if limits.top_k:
        scores = TopKLogitsWarper(limits.top_k)(None, scores)
    if limits.top_p < 1:
        scores = TopPLogitsWarper(limits.top_p)(None, scores)
    if limits.min_p:
        scores = MinPLogitsWarper(limits.min_p)(None, scores)
    return scores.double().softmax(1)[0]


@pytest.mark.parametrize("limits", KINDS)
@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_what_is_kept_is_what_transformers_keeps(limits: Limits, spread: float) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        logits = torch.randn(150, generator=generator) * spread
        weights = torch.from_numpy(_kept(logits, limits)).double()
        torch.testing.assert_close(weights / weights.sum(), _reference(logits, limits), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("way", [_on_cpu, _on_any_device])
@pytest.mark.parametrize("limits", KINDS)
def test_frequencies_are_those_of_the_distribution(way: Any, limits: Limits) -> None:
    """Chi-square of 40,000 draws against transformers' probabilities, with a fixed seed."""
    n, vocab = 40_000, 40
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(6)) * 1.5
    words = np.zeros(n, np.uint64)
    drawn = way(logits.expand(n, vocab), [limits] * n, uniforms(words + np.uint64(77), words, np.arange(n)))
    counts, expected = np.bincount(drawn, minlength=vocab), _reference(logits, limits).numpy() * n
    assert not counts[expected == 0].any()
    often = expected >= 5
    rest_counts, rest = counts[~often].sum(), expected[~often].sum()
    statistic = ((counts[often] - expected[often]) ** 2 / expected[often]).sum()
    statistic += (rest_counts - rest) ** 2 / max(rest, 1.0)
    freedom = max(int(often.sum()), 1)
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
