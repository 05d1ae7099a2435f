"""Penalties against a plain reference, against transformers, and against their own replay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from gpu.penalties import Penalties
from protocols.plan import SlotOpen
from protocols.sampling import SamplingParams

CPU = torch.device("cpu")
VOCAB = 50


def _opening(slot: int, prompt: list[int], output: list[int], sampling: SamplingParams) -> SlotOpen:
    history = np.array(prompt + output, "<i4").tobytes()
    return SlotOpen(slot, slot, sampling, 0, len(prompt), 0, history)


def _sampling(repetition: float = 1.0, presence: float = 0.0, frequency: float = 0.0) -> SamplingParams:
    return SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )


def _plain(logits: np.ndarray, prompt: list[int], output: list[int], sampling: SamplingParams) -> np.ndarray:
    expected = logits.astype(np.float64)
    for token in range(len(logits)):
        if token in prompt or token in output:
            factor = sampling.repetition_penalty
            expected[token] = expected[token] / factor if expected[token] > 0 else expected[token] * factor
        expected[token] -= sampling.frequency_penalty * output.count(token)
        expected[token] -= sampling.presence_penalty * (token in output)
    return expected


@pytest.mark.parametrize("fused", [False, True])
def test_rows_are_penalised_as_defined_while_they_grow(fused: bool) -> None:
    if fused:
        pytest.importorskip(
            "triton", minversion="3.7", reason="Triton is not installed: its kernels are not tested."
        )
    rng = np.random.default_rng(0)
    kinds = [_sampling(1.3), _sampling(0.8, 0.5), _sampling(1.0, -1.5, 0.25), _sampling(2.0, 0.1, -0.5)]
    penalties = Penalties(8, VOCAB, CPU, fused=fused)
    slots = np.array([6, 1, 3, 0], np.int32)
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in (1, 30, 7, 300)]
    outputs: list[list[int]] = [[], [4, 4, 9], [], [1]]
    for slot, prompt, output, kind in zip(slots, prompts, outputs, kinds, strict=True):
        penalties.open(_opening(int(slot), prompt, output, kind))
    for step in range(12):
        where = np.array([5, 2, 0, 3])[: 2 + step % 3]
        logits = rng.normal(0, 2, (6, VOCAB)).astype(np.float32)
        penalised = torch.from_numpy(logits.copy())
        penalties.apply(penalised, where, slots[: len(where)])
        for i, row in enumerate(where):
            expected = _plain(logits[row], prompts[i], outputs[i], kinds[i])
            np.testing.assert_allclose(penalised[row].numpy(), expected, rtol=1e-5, atol=1e-5)
        untouched = np.setdiff1d(np.arange(6), where)
        assert np.array_equal(penalised.numpy()[untouched], logits[untouched])
        tokens = torch.from_numpy(rng.integers(0, VOCAB, 6))
        penalties.count(tokens, where, slots[: len(where)])
        for i, row in enumerate(where):
            outputs[i].append(int(tokens[row]))


@pytest.mark.parametrize("penalty", [0.7, 1.2, 3.0])
def test_repetition_is_that_of_transformers(penalty: float) -> None:
    rng = np.random.default_rng(1)
    history = rng.integers(0, VOCAB, 40).tolist()
    logits = torch.from_numpy(rng.normal(0, 3, (1, VOCAB)).astype(np.float32))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([history]), logits.clone())
    penalties = Penalties(1, VOCAB, CPU)
    penalties.open(_opening(0, history[:25], history[25:], _sampling(penalty)))
    penalties.apply(logits, np.array([0]), np.array([0], np.int32))
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_counting_and_replaying_are_the_same_bits() -> None:
    """After a recovery the history comes with the opening: nothing may tell it from one that grew."""
    rng = np.random.default_rng(2)
    prompt, output = rng.integers(0, VOCAB, 20).tolist(), rng.integers(0, VOCAB, 300).tolist()
    sampling, slot = _sampling(1.1, 0.3, 0.05), np.array([0], np.int32)
    grown, replayed = Penalties(1, VOCAB, CPU), Penalties(1, VOCAB, CPU)
    grown.open(_opening(0, prompt, [], sampling))
    for token in output:
        grown.count(torch.tensor([token]), np.array([0]), slot)
    replayed.open(_opening(0, prompt, output, sampling))
    logits = torch.from_numpy(rng.normal(0, 2, (2, VOCAB)).astype(np.float32))
    logits[1] = logits[0]
    grown.apply(logits, np.array([0]), slot)
    replayed.apply(logits, np.array([1]), slot)
    assert torch.equal(logits[0], logits[1])


def test_a_reopened_slot_has_forgotten() -> None:
    penalties = Penalties(2, VOCAB, CPU)
    slot = np.array([1], np.int32)
    for _ in range(3):
        penalties.open(_opening(1, [1, 2, 3], [4, 4], _sampling(1.5, 1.0, 1.0)))
        penalties.count(torch.tensor([7]), np.array([0]), slot)
        penalties.close(1)
    penalties.open(_opening(1, [9], [], _sampling(2.0, 1.0, 1.0)))
    logits = torch.ones(1, VOCAB)
    penalties.apply(logits, np.array([0]), slot)
    expected = torch.ones(1, VOCAB)
    expected[0, 9] = 0.5
    assert torch.equal(logits, expected)
    penalties.count(torch.tensor([4]), np.array([0]), slot)
    expected[0, 4], logits = 0.5 - 2.0, torch.ones(1, VOCAB)
    penalties.apply(logits, np.array([0]), slot)
    assert torch.equal(logits, expected)


def test_suppressed_tokens_stay_suppressed() -> None:
    penalties = Penalties(1, VOCAB, CPU)
    penalties.open(_opening(0, [3], [3], _sampling(1.5, -2.0, -2.0)))
    logits = torch.zeros(1, VOCAB)
    logits[0, 3] = -torch.inf
    penalties.apply(logits, np.array([0]), np.array([0], np.int32))
    assert logits[0, 3] == -torch.inf
    assert not logits.isnan().any()
