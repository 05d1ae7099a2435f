"""What every executor owes its scheduler: the hash executor and the real one pass the same tests."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from gpu.hash_executor import HashExecutor
from protocols.config import Config, ExecutorKind, ModelCard
from protocols.plan import Plan
from protocols.sampling import SamplingParams
from tests.gpu.plans import GREEDY, Driver, Sequence
from tests.gpu.random_llama import random_llama

VOCAB = 199
PAGES, PAGE_SIZE, SLOTS, CONTEXT = 48, 16, 8, 128

SAMPLED = SamplingParams(temperature=1.0, seed=7, max_tokens=64)
RESTRICTED = SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.01, seed=2**62 + 5, max_tokens=64)
PENALISED = SamplingParams(
    temperature=0.9,
    repetition_penalty=1.3,
    presence_penalty=0.4,
    frequency_penalty=0.3,
    seed=3,
    max_tokens=64,
)
EVERY_KIND = [GREEDY, SAMPLED, RESTRICTED, PENALISED]


def _config(card: ModelCard, kind: ExecutorKind) -> Config:
    return Config(
        model=card,
        device="cpu",
        dtype="float32",
        pages=PAGES,
        page_size=PAGE_SIZE,
        max_running=SLOTS,
        chunk_size=64,
        executor=kind,
        threads=1,
    )


def _tiny_llama(directory: pathlib.Path) -> ModelCard:
    return random_llama(
        directory,
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        eos_token_id=2,
    )


@pytest.fixture(scope="module", params=list(ExecutorKind))
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param is ExecutorKind.HASH:
        card = ModelCard("hash", "/", "Hash", CONTEXT, VOCAB, (2,))
        return HashExecutor.load(_config(card, ExecutorKind.HASH), print)
    from gpu.loading import load_executor

    card = _tiny_llama(tmp_path_factory.mktemp("llama"))
    return load_executor(_config(card, ExecutorKind.MODEL), print)


def _prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist()


def _alone(
    executor: Any, prompt: list[int], sampling: SamplingParams, count: int, choice: int = 0
) -> list[int]:
    return Driver(executor).generate(Sequence(0, list(prompt), sampling, choice), count)


def test_sizes_are_those_of_the_configuration(executor: Any) -> None:
    sizes = (executor.pages, executor.page_size, executor.slots, executor.vocab_size)
    assert sizes == (PAGES, PAGE_SIZE, SLOTS, VOCAB)


@pytest.mark.parametrize("sampling", EVERY_KIND)
def test_a_new_epoch_starts_from_nothing(executor: Any, sampling: SamplingParams) -> None:
    first = _alone(executor, _prompt(21), sampling, 12)
    Driver(executor).generate(Sequence(0, _prompt(40, 5), PENALISED), 9)
    assert _alone(executor, _prompt(21), sampling, 12) == first
    assert len(set(first)) > 1


@pytest.mark.parametrize("splits", [(1,), (16,), (15, 16, 17), (3, 4, 5, 30), tuple(range(1, 37))])
@pytest.mark.parametrize("sampling", [GREEDY, RESTRICTED])
def test_chunks_may_be_cut_anywhere(executor: Any, splits: tuple[int, ...], sampling: SamplingParams) -> None:
    whole = _alone(executor, _prompt(37), sampling, 8)
    assert Driver(executor).generate(Sequence(3, _prompt(37), sampling), 8, *splits) == whole


@pytest.mark.parametrize("shared_pages", [1, 2])
def test_shared_pages_are_as_good_as_computed_ones(executor: Any, shared_pages: int) -> None:
    common = _prompt(2 * PAGE_SIZE)
    mine, theirs = [*common, 5, 6, 7], [*common, 8, 9]
    expected = _alone(executor, mine, SAMPLED, 20), _alone(executor, theirs, GREEDY, 20)
    driver = Driver(executor)
    owner = driver.open(Sequence(0, theirs))
    driver.prefill(owner)
    guest = driver.open(Sequence(1, mine, SAMPLED), owner.pages[:shared_pages])
    driver.prefill(guest)
    while len(guest.output) < 20:
        driver.step(decodes=[guest, owner])
    assert (guest.output, owner.output[:20]) == expected


@pytest.mark.parametrize("sampling", EVERY_KIND)
@pytest.mark.parametrize("kept", [0, 2])
def test_a_retracted_sequence_goes_on_exactly(executor: Any, sampling: SamplingParams, kept: int) -> None:
    expected = _alone(executor, _prompt(30), sampling, 24)
    driver = Driver(executor)
    sequence = Sequence(2, _prompt(30), sampling)
    driver.generate(sequence, 9)
    pages = sequence.pages[:kept]
    driver.close(sequence, keep_pages=True)
    driver.free[:0] = sequence.pages[kept:]
    driver.generate(Sequence(1, _prompt(20, 9)), 20)
    sequence.slot = 6
    driver.prefill(driver.open(sequence, pages))
    while len(sequence.output) < 24:
        driver.step(decodes=[sequence])
    assert sequence.output == expected


def test_neighbours_change_nothing(executor: Any) -> None:
    prompts = [_prompt(5 + 7 * i, i) for i in range(6)]
    kinds = [*EVERY_KIND, SAMPLED, GREEDY]
    expected = [_alone(executor, prompts[i], kinds[i], 12 - i, choice=i) for i in range(6)]
    driver = Driver(executor)
    running: list[Sequence] = []
    for i in range(6):
        newcomer = driver.open(Sequence(i, prompts[i], kinds[i], choice=i))
        driver.step([(newcomer, 0, len(prompts[i]))], running)
        running.insert(i // 2, newcomer)
    while min(len(sequence.output) for sequence in running) < 12:
        driver.step(decodes=running)
    by_slot = sorted(running, key=lambda sequence: sequence.slot)
    assert [sequence.output[: 12 - i] for i, sequence in enumerate(by_slot)] == expected


@pytest.mark.parametrize("sampling", EVERY_KIND)
def test_a_slot_is_as_good_as_new_after_a_close(executor: Any, sampling: SamplingParams) -> None:
    expected = _alone(executor, _prompt(18), sampling, 6)
    driver = Driver(executor)
    for previous in EVERY_KIND:
        guest = Sequence(4, _prompt(50, 3), previous)
        driver.generate(guest, 10)
        driver.close(guest)
        sequence = Sequence(4, _prompt(18), sampling)
        assert driver.generate(sequence, 6) == expected
        driver.close(sequence)


def test_rows_come_in_plan_order(executor: Any) -> None:
    driver = Driver(executor)
    slots = [5, 0, 3]
    old = [driver.open(Sequence(slot, _prompt(9, slot))) for slot in slots]
    for sequence in old:
        driver.prefill(sequence)
    new = [driver.open(Sequence(slot, _prompt(20, slot))) for slot in (7, 1, 2)]
    done = driver.step([(new[0], 0, 20), (new[1], 0, 11), (new[2], 0, 20)], old)
    assert np.frombuffer(done.slots, "<i4").tolist() == [7, 2, *slots]
    assert len(done.tokens) == len(done.slots)
    assert done.failed == ()


def test_a_token_is_a_function_of_seed_and_choice(executor: Any) -> None:
    def of(seed: int, choice: int) -> tuple[int, ...]:
        sampling = SamplingParams(temperature=1.5, seed=seed, max_tokens=64)
        return tuple(_alone(executor, _prompt(8), sampling, 10, choice))

    streams = {(seed, choice): of(seed, choice) for seed in (0, 1, 2**32, 2**63 - 1) for choice in (0, 1)}
    assert len(set(streams.values())) == len(streams)
    assert of(2**32, 1) == streams[2**32, 1]


@pytest.mark.parametrize("sampling", EVERY_KIND)
def test_a_plan_may_be_launched_before_the_tokens_of_the_last_are_known(
    executor: Any, sampling: SamplingParams
) -> None:
    expected = _alone(executor, _prompt(14), sampling, 10), _alone(executor, _prompt(22, 1), GREEDY, 10)
    driver = Driver(executor)
    pair = [driver.open(Sequence(0, _prompt(14), sampling)), driver.open(Sequence(1, _prompt(22, 1)))]
    plan = driver.plan([(pair[0], 0, 14), (pair[1], 0, 22)], [])
    flights = [(plan, executor.launch(plan))]
    while len(pair[0].output) < 10:
        plan = driver.plan([], pair)
        flights.append((plan, executor.launch(plan)))
        driver.take(*flights.pop(0), pair)
    driver.take(*flights.pop(0), pair)
    assert (pair[0].output[:10], pair[1].output[:10]) == expected


TOLD = SamplingParams(temperature=0, seed=1, logprobs=2)


@pytest.mark.parametrize("kinds", [[GREEDY] * 3, [*EVERY_KIND, TOLD]], ids=["greedy", "every kind"])
def test_rounds_are_as_good_as_single_steps(executor: Any, kinds: list[SamplingParams]) -> None:
    expected = [_alone(executor, _prompt(14, i), kind, 9) for i, kind in enumerate(kinds)]
    driver = Driver(executor)
    crowd = [driver.open(Sequence(i, _prompt(14, i), kind)) for i, kind in enumerate(kinds)]
    driver.step([(sequence, 0, 14) for sequence in crowd])
    first, second = (driver.plan([], crowd, rounds=rounds) for rounds in (5, 3))
    flights = [executor.launch(first), executor.launch(second)]
    reports = [
        driver.take(plan, flight, crowd) for plan, flight in zip((first, second), flights, strict=True)
    ]
    assert [sequence.output for sequence in crowd] == expected
    for report, rounds in zip(reports, (5, 3), strict=True):
        assert np.frombuffer(report.slots, "<i4").tolist() == [s.slot for s in crowd] * rounds
        told = [index for index, _ in report.logprobs]
        asked = [i for i, sequence in enumerate(crowd * rounds) if sequence.sampling is TOLD]
        assert told == asked


def test_a_wasted_row_harms_nobody(executor: Any) -> None:
    """A sequence that has ended runs once more, in the flight that was up, before its pages go to another."""
    expected = _alone(executor, _prompt(33, 2), RESTRICTED, 10)
    driver = Driver(executor)
    ended = Sequence(0, _prompt(15), SAMPLED)
    driver.generate(ended, 3)
    driver.step(decodes=[ended])
    driver.close(ended)
    assert driver.generate(Sequence(0, _prompt(33, 2), RESTRICTED), 10) == expected


def test_logprobs_come_for_those_that_ask(executor: Any) -> None:
    driver = Driver(executor)
    wishes = [None, 0, 5]
    sequences = [
        driver.open(Sequence(i, _prompt(6, i), SamplingParams(temperature=0, seed=1, logprobs=wish)))
        for i, wish in enumerate(wishes)
    ]
    done = driver.step([(sequence, 0, 6) for sequence in sequences])
    reports = dict(done.logprobs)
    assert sorted(reports) == [1, 2]
    assert reports[1].ids == ()
    assert len(reports[2].ids) == len(reports[2].values) == 5
    assert reports[2].ids[0] == sequences[2].output[0]
    assert reports[2].chosen == pytest.approx(reports[2].values[0])
    assert list(reports[2].values) == sorted(reports[2].values, reverse=True)


def test_stop_tokens_wait_for_min_tokens(executor: Any) -> None:
    plain = _alone(executor, _prompt(12), SAMPLED, 8)
    stop = plain[0]
    sampling = SamplingParams(seed=7, max_tokens=64, min_tokens=4, stop_token_ids=(stop,))
    output = _alone(executor, _prompt(12), sampling, 8)
    assert stop not in output[:4]
    assert output[0] != plain[0]


def test_a_plan_that_only_closes_or_prefills_samples_nothing(executor: Any) -> None:
    driver = Driver(executor)
    sequence = driver.open(Sequence(0, _prompt(20)))
    done = driver.step([(sequence, 0, 8)])
    assert (done.slots, done.tokens) == (b"", b"")
    driver.close(sequence)
    plan = driver.plan([], [])
    assert isinstance(plan, Plan)
    assert driver.take(plan, executor.launch(plan), []).slots == b""
