"""The sampler whole: every step of its order, and that a row depends on itself alone."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from gpu.philox import uniforms
from gpu.sampler import Sampler, SampleResult
from protocols.plan import SlotOpen
from protocols.sampling import SamplingParams

CPU = torch.device("cpu")
VOCAB = 517
PROMPT = [5, 6, 7, 8]

GREEDY = SamplingParams(temperature=0.0, seed=1)
MANY = [
    GREEDY,
    SamplingParams(seed=2),
    SamplingParams(seed=3, temperature=0.6, top_k=30, top_p=0.9),
    SamplingParams(seed=4, top_p=0.7, logprobs=3),
    SamplingParams(seed=5, min_p=0.05, repetition_penalty=1.4, frequency_penalty=0.6),
    SamplingParams(temperature=0.0, seed=6, presence_penalty=1.0, logprobs=0),
    SamplingParams(seed=7, logit_bias=((11, 8.0), (12, -100.0)), top_k=3),
    SamplingParams(temperature=0.0, seed=8, min_tokens=4, stop_token_ids=tuple(range(0, VOCAB, 2))),
    SamplingParams(seed=9, temperature=5.0, top_k=100, min_p=0.3, logprobs=20),
]


def _open(sampler: Sampler, slot: int, sampling: SamplingParams, choice: int = 0) -> None:
    history = np.array(PROMPT, "<i4").tobytes() if sampling.remembers else b""
    sampler.open(SlotOpen(slot, slot, sampling, choice, len(PROMPT), 0, history))


def _logits(rows: int, steps: int, seed: int = 0) -> torch.Tensor:
    """[steps, rows, VOCAB]"""
    return torch.randn(steps, rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2.5


def _sample(sampler: Sampler, logits: torch.Tensor, slots: list[int], positions: list[int]) -> SampleResult:
    return sampler.sample(logits.clone(), np.array(slots, np.int32), np.array(positions, np.int64))


def _one(sampling: SamplingParams, logits: torch.Tensor, position: int = len(PROMPT)) -> SampleResult:
    sampler = Sampler(1, logits.shape[1], CPU)
    _open(sampler, 0, sampling)
    return _sample(sampler, logits, [0], [position])


@pytest.mark.parametrize("way", ["tiled", "torch", "fused"])
def test_a_row_depends_on_nothing_but_itself(way: str) -> None:
    """The same rows alone, and in crowds that change from step to step, in other slots and orders; the crowd
    also as another device than a CPU would have it."""
    steps, rng = 4 if way == "fused" else 10, np.random.default_rng(0)
    logits = _logits(len(MANY), steps)
    alone, reports = [], []
    for i, sampling in enumerate(MANY):
        sampler = Sampler(1, VOCAB, CPU)
        _open(sampler, 0, sampling, choice=i)
        results = [_sample(sampler, logits[t, i : i + 1], [0], [len(PROMPT) + t]) for t in range(steps)]
        alone.append([int(result.tokens[0]) for result in results])
        reports.append([dict(result.logprobs).get(0) for result in results])
    slots = rng.permutation(32)[: len(MANY)]
    if way == "fused":
        pytest.importorskip(
            "triton", minversion="3.7", reason="Triton is not installed: its kernels are not tested."
        )
    crowd = Sampler(32, VOCAB, CPU, fused=way == "fused")
    crowd._cpu = crowd._cpu if way == "tiled" else None
    for i, sampling in enumerate(MANY):
        _open(crowd, int(slots[i]), sampling, choice=i)
    done = [0] * len(MANY)
    while min(done) < steps:
        order = [int(i) for i in rng.permutation(len(MANY)) if done[i] < steps and rng.random() < 0.7]
        rows = torch.stack([logits[done[i], i] for i in order]) if order else logits[0, :0]
        positions = [len(PROMPT) + done[i] for i in order]
        result = _sample(crowd, rows, [int(slots[i]) for i in order], positions)
        report = dict(result.logprobs)
        for row, i in enumerate(order):
            assert int(result.tokens[row]) == alone[i][done[i]]
            assert report.get(row) == reports[i][done[i]]
            done[i] += 1
        assert result.failed == []


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(seed=1, top_k=1)])
def test_greedy_is_the_first_of_the_greatest(sampling: SamplingParams) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [40, 9, 300]] = 2.0
    assert {int(_one(sampling, logits, position).tokens[0]) for position in range(4, 20)} == {9}


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(seed=1, top_k=1, temperature=2.0),
        SamplingParams(seed=1, temperature=1e-6),
        SamplingParams(seed=1, temperature=1e-300),
        SamplingParams(seed=1, temperature=1e-5),
        SamplingParams(seed=1, top_p=1e-9),
        SamplingParams(seed=1, min_p=1.0),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_a_distribution_of_one_token_is_greedy(sampling: SamplingParams, scale: float) -> None:
    logits = _logits(1, 1)[0] * scale
    for position in range(len(PROMPT), 30):
        assert _one(sampling, logits, position).tokens.tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("off", [0, -1, VOCAB, VOCAB + 1, 2**31])
def test_top_k_may_be_off_in_several_ways(off: int) -> None:
    logits = _logits(1, 1)[0]
    plain = SamplingParams(seed=3, temperature=3.0)
    for position in range(len(PROMPT), 30):
        sampling = msgspec.structs.replace(plain, top_k=off)
        assert _one(sampling, logits, position).tokens == _one(plain, logits, position).tokens


def test_the_draw_is_the_inverse_of_the_cumulative_sum() -> None:
    logits = _logits(1, 1)[0]
    cumulative = logits.double().softmax(1).cumsum(1)[0].numpy()
    for position in range(len(PROMPT), 200):
        words = (np.array([value], np.uint64) for value in (2**62 + 1, 3))
        (uniform,) = uniforms(*words, np.array([position]))
        sampler = Sampler(1, VOCAB, CPU)
        _open(sampler, 0, SamplingParams(seed=2**62 + 1), choice=3)
        token = int(_sample(sampler, logits, [0], [position]).tokens[0])
        assert token == np.searchsorted(cumulative, uniform, side="right")


def test_stop_tokens_are_impossible_until_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 3], logits[0, 4], logits[0, 5] = 9.0, 8.0, 7.0
    sampling = SamplingParams(temperature=0.0, seed=1, min_tokens=2, stop_token_ids=(3, 4))
    tokens = [_one(sampling, logits, len(PROMPT) + index).tokens.tolist() for index in range(4)]
    assert tokens == [[5], [5], [3], [3]]


def test_bias_comes_before_suppression_and_penalties() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 3] = 1.0
    biased = SamplingParams(temperature=0.0, seed=1, logit_bias=((3, -5.0), (9, 4.0)))
    assert _one(biased, logits).tokens.tolist() == [9]
    stop = msgspec.structs.replace(biased, min_tokens=1, stop_token_ids=(9,))
    assert _one(stop, logits).tokens.tolist() == [0]
    # A biased prompt token: (0 + 2) / 4 is less than 1, and (0 - 5) * 4 is less than 0.
    logits[0, 5], logits[0, 6], logits[0, 100] = 0.0, 0.0, 1.0
    penalised = SamplingParams(
        temperature=0.0, seed=1, repetition_penalty=4.0, logit_bias=((5, 2.0), (6, 8.0), (3, -5.0))
    )
    assert _one(penalised, logits).tokens.tolist() == [6]
    weaker = msgspec.structs.replace(penalised, logit_bias=((5, 2.0), (6, 3.0), (3, -5.0)))
    assert _one(weaker, logits).tokens.tolist() == [100]


def test_sampled_tokens_are_counted() -> None:
    """An ever growing frequency penalty must walk down the logits."""
    sampler = Sampler(2, VOCAB, CPU)
    _open(sampler, 1, SamplingParams(temperature=0.0, seed=1, frequency_penalty=2.0))
    logits = torch.zeros(1, VOCAB)
    logits[0, 100], logits[0, 200] = 5.0, 4.0
    tokens = [int(_sample(sampler, logits, [1], [len(PROMPT) + i]).tokens[0]) for i in range(5)]
    assert tokens == [100, 200, 100, 200, 100]


@pytest.mark.parametrize("sampling", MANY)
@pytest.mark.parametrize(
    ("damage", "word"), [(torch.nan, "NaN"), (torch.inf, "infinite"), (-torch.inf, "minus infinity")]
)
def test_a_broken_row_fails_alone(sampling: SamplingParams, damage: float, word: str) -> None:
    logits = _logits(3, 1)[0]
    others = [SamplingParams(seed=20), SamplingParams(seed=21, top_p=0.9, logprobs=2)]
    sampler = Sampler(4, VOCAB, CPU)
    for slot, each in ((0, others[0]), (3, sampling), (1, others[1])):
        _open(sampler, slot, each)
    broken = logits.clone()
    broken[1, slice(None) if damage == -torch.inf else 17] = damage
    result = _sample(sampler, broken, [0, 3, 1], [len(PROMPT)] * 3)
    neighbours = [
        int(_one(other, logits[row : row + 1]).tokens[0]) for row, other in ((0, others[0]), (2, others[1]))
    ]
    assert result.tokens.tolist() == [neighbours[0], -1, neighbours[1]]
    ((slot, error),) = result.failed
    assert slot == 3
    assert word in error.message
    assert (error.status, error.code) == (500, "computation_failed")
    assert [row for row, _ in result.logprobs] == [2]


def test_a_failed_row_does_not_spoil_the_next_step() -> None:
    sampling = SamplingParams(temperature=0.0, seed=1, frequency_penalty=1.0)
    sampler = Sampler(1, VOCAB, CPU)
    _open(sampler, 0, sampling)
    assert _sample(sampler, torch.full((1, VOCAB), torch.nan), [0], [4]).tokens.tolist() == [-1]
    logits = torch.zeros(1, VOCAB)
    logits[0, 6] = 1.0
    assert _sample(sampler, logits, [0], [5]).tokens.tolist() == [6]


@pytest.mark.parametrize("sampling", MANY)
def test_half_precision_logits_are_those_numbers_in_float32(sampling: SamplingParams) -> None:
    half = _logits(1, 1)[0].bfloat16()
    for position in range(len(PROMPT), 12):
        assert _one(sampling, half, position).tokens == _one(sampling, half.float(), position).tokens


@pytest.mark.parametrize("vocab", [9, 517, 5000])
def test_logprobs_are_the_models_own(vocab: int) -> None:
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(1)) * 3
    sampling = SamplingParams(
        seed=3, temperature=4.0, presence_penalty=1.0, logit_bias=((2, 50.0),), logprobs=min(vocab, 20)
    )
    result = _one(sampling, logits)
    ((row, report),) = result.logprobs
    expected = logits.log_softmax(1)[0]
    top = expected.topk(min(vocab, 20))
    assert (row, result.tokens.tolist()) == (0, [2])
    assert report.chosen == pytest.approx(float(expected[2]), abs=1e-5)
    assert list(report.ids) == top.indices.tolist()
    assert list(report.values) == pytest.approx(top.values.tolist(), abs=1e-5)


def test_equal_logprobs_come_in_the_order_of_their_ids() -> None:
    logits = torch.zeros(1, 5000)
    logits[0, 1::2] = 1.0
    ((_, report),) = _one(SamplingParams(temperature=0.0, seed=1, logprobs=20), logits).logprobs
    assert report.ids == tuple(range(1, 41, 2))


def test_reset_and_close_forget() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 3] = 1.0
    for forget in (lambda sampler: sampler.close(0), Sampler.reset):
        sampler = Sampler(1, VOCAB, CPU)
        _open(sampler, 0, SamplingParams(seed=1, logit_bias=((9, 50.0),), min_tokens=9, stop_token_ids=(3,)))
        forget(sampler)
        _open(sampler, 0, GREEDY)
        assert _sample(sampler, logits, [0], [4]).tokens.tolist() == [3]


def test_no_rows_are_no_tokens() -> None:
    result = _sample(Sampler(1, VOCAB, CPU), torch.zeros(0, VOCAB), [], [])
    assert (result.tokens.tolist(), result.logprobs, result.failed) == ([], [], [])
