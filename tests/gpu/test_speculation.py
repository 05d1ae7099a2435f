"""Guesses change the number of steps, and nothing else: the same tokens and logprobs on both executors."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from gpu.hash_executor import HashExecutor
from gpu.speculation import Run
from protocols.config import Config, ExecutorKind, ModelCard, Speculate
from protocols.plan import Logprobs, PageGrant, Plan, StepDone
from protocols.sampling import SamplingParams
from tests.gpu.plans import Driver, Sequence, ints
from tests.gpu.random_llama import random_llama

VOCAB, PAGES, SLOTS, CONTEXT = 97, 96, 8, 256

NARROW = tuple((token, 40.0) for token in (5, 11, 17))
"""Three tokens that a random model then chooses among, so that it repeats itself, though not always."""
WANT = 50
GREEDY = SamplingParams(temperature=0.0, seed=1, max_tokens=WANT, logit_bias=NARROW)
COLD = SamplingParams(temperature=0.7, seed=5, max_tokens=WANT, logit_bias=NARROW)
RESTRICTED = SamplingParams(
    temperature=0.8, top_k=2, top_p=0.95, min_p=0.01, seed=2**62 + 5, max_tokens=WANT, logit_bias=NARROW
)
FREE = SamplingParams(temperature=0.4, seed=9, max_tokens=WANT)
YOUNG = SamplingParams(
    temperature=0.7, seed=1, max_tokens=WANT, min_tokens=30, stop_token_ids=(11, 17), logit_bias=NARROW
)
TELLING = SamplingParams(temperature=0.0, seed=1, max_tokens=WANT, logprobs=3, logit_bias=NARROW)
PENALISED = SamplingParams(
    temperature=0.0, repetition_penalty=1.05, seed=3, max_tokens=WANT, logit_bias=NARROW
)
EVERY_KIND = {
    "greedy": GREEDY,
    "cold": COLD,
    "restricted": RESTRICTED,
    "free": FREE,
    "young": YOUNG,
    "telling": TELLING,
    "penalised": PENALISED,
}


@dataclasses.dataclass
class Pair:
    """The same executor with and without speculation."""

    plain: Any
    guessing: Any

    def driver(self, *, guessing: bool) -> Driver:
        return Driver(self.guessing if guessing else self.plain, speculates=guessing)


def _config(card: ModelCard, kind: ExecutorKind, speculate: Speculate, page_size: int) -> Config:
    return Config(
        model=card,
        device="cpu",
        dtype="float32",
        pages=PAGES * 8 // page_size,
        page_size=page_size,
        max_running=SLOTS,
        chunk_size=64,
        executor=kind,
        threads=1,
        speculate=speculate,
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    """A random model which soon repeats itself."""
    directory = tmp_path_factory.mktemp("llama")
    return random_llama(directory, vocab_size=VOCAB, max_position_embeddings=CONTEXT, eos_token_id=2)


@pytest.fixture(
    scope="module",
    params=[(kind, size) for kind in ExecutorKind for size in (8, 1)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def pair(request: pytest.FixtureRequest, llama: ModelCard) -> Pair:
    kind, page_size = request.param
    if kind is ExecutorKind.HASH:
        card = ModelCard("hash", "/", "Hash", CONTEXT, VOCAB, (2,))
        return Pair(*(HashExecutor.load(_config(card, kind, each, page_size), print) for each in Speculate))
    from gpu.loading import load_executor

    return Pair(*(load_executor(_config(llama, kind, each, page_size), print) for each in Speculate))


def _prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist()


@pytest.mark.parametrize("name", EVERY_KIND)
@pytest.mark.parametrize("drafts", [1, 6])
def test_guesses_change_no_token(pair: Pair, name: str, drafts: int) -> None:
    sampling = EVERY_KIND[name]
    expected = pair.driver(guessing=False).generate(Sequence(0, _prompt(21), sampling), WANT)
    driver = pair.driver(guessing=True)
    sequence = driver.open(Sequence(3, _prompt(21), sampling))
    driver.prefill(sequence)
    done, accepted = driver.step(decodes=[sequence], drafts=drafts), 0
    while done.slots:
        accepted += done.accepted
        done = driver.step(decodes=[sequence], drafts=drafts)
        if len(sequence.output) >= WANT:
            break
    assert sequence.output == expected[: len(sequence.output)]
    if name == "young":
        assert sequence.output[-1] in YOUNG.stop_token_ids or len(sequence.output) == WANT
    else:
        assert len(sequence.output) == WANT
    assert (accepted > 0) is (name != "penalised") or name == "free"


def test_a_crowd_of_every_kind_at_depth_two(pair: Pair) -> None:
    """Plans are made and launched before the results of the one before are taken."""
    kinds = [sampling for sampling in EVERY_KIND.values() if sampling is not YOUNG]
    prompts = [_prompt(5 + 7 * i, i) for i in range(len(kinds))]
    expected = [
        pair.driver(guessing=False).generate(Sequence(0, list(prompt), kind, i), WANT)
        for i, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True))
    ]
    driver = pair.driver(guessing=True)
    running = [
        driver.open(Sequence(i, list(prompt), kind, i))
        for i, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True))
    ]
    for sequence in running:
        driver.prefill(sequence)
    flights: list[tuple[Plan, Any]] = []
    for round_ in range(400):
        plan = driver.plan([], running, drafts=round_ % 5)
        flights.append((plan, pair.guessing.launch(plan)))
        if len(flights) == 2:
            driver.take(*flights.pop(0), running)
        if all(len(sequence.output) >= WANT for sequence in running):
            break
    assert [sequence.output[:WANT] for sequence in running] == expected


def test_logprobs_are_those_of_each_token(pair: Pair) -> None:
    def reports(done: StepDone) -> list[Logprobs]:
        assert [index for index, _ in done.logprobs] == list(range(len(done.tokens) // 4))
        return [report for _, report in done.logprobs]

    plain, guessing = [], []
    for found, driver, drafts in (
        (plain, pair.driver(guessing=False), 0),
        (guessing, pair.driver(guessing=True), 6),
    ):
        sequence = driver.open(Sequence(1, _prompt(21), TELLING))
        found += reports(driver.step([(sequence, 0, 21)]))
        while len(sequence.output) < WANT:
            found += reports(driver.step(decodes=[sequence], drafts=drafts))
    assert [report.ids for report in plain] == [report.ids for report in guessing]
    for one, other in zip(plain, guessing, strict=True):
        assert other.chosen == pytest.approx(one.chosen, abs=1e-4)
        assert other.values == pytest.approx(one.values, abs=1e-4)


def test_a_retracted_sequence_goes_on_exactly(pair: Pair) -> None:
    expected = pair.driver(guessing=False).generate(Sequence(0, _prompt(30), COLD), WANT)
    driver = pair.driver(guessing=True)
    sequence = driver.open(Sequence(2, _prompt(30), COLD))
    driver.prefill(sequence)
    for _ in range(9):
        driver.step(decodes=[sequence], drafts=6)
    driver.close(sequence)
    other = driver.open(Sequence(1, _prompt(20, 9)))
    driver.prefill(other)
    sequence.slot = 6
    driver.prefill(driver.open(sequence))
    while len(sequence.output) < WANT:
        driver.step(decodes=[sequence], drafts=4)
    assert sequence.output == expected


def test_guesses_stay_within_the_pages_granted(pair: Pair) -> None:
    """A slot runs to the end of its pages and then has no row, until it gets another page."""
    expected = pair.driver(guessing=False).generate(Sequence(0, _prompt(9), GREEDY), WANT)
    size, driver = pair.guessing.page_size, pair.driver(guessing=True)
    sequence = driver.open(Sequence(0, _prompt(9), GREEDY))
    driver.prefill(sequence)
    step = 1000
    for granted in range(len(sequence.pages), WANT // size):
        for allowed in (6, 6, 3, 6):
            step += 1
            plan = Plan(driver.epoch, step, decodes=ints([0]), drafts=ints([allowed]))
            driver.take(plan, pair.guessing.launch(plan), [sequence])
            assert len(sequence.tokens) - 1 <= granted * size
        grant = PageGrant(0, granted, ints([driver.free.pop(0)]))
        plan = Plan(driver.epoch, step := step + 1, grants=(grant,), decodes=ints([0]))
        driver.take(plan, pair.guessing.launch(plan), [sequence])
    assert len(sequence.output) > 20
    assert sequence.output == expected[: len(sequence.output)]


def test_nothing_comes_after_max_tokens_or_a_stop_token(pair: Pair) -> None:
    driver = pair.driver(guessing=True)
    tokens = driver.generate(Sequence(0, _prompt(9), GREEDY), 30)
    stop = tokens.index(tokens[17])
    ends = {count: {"max_tokens": count} for count in (1, 2, 13)}
    ends |= {stop + 1: {"stop_token_ids": (tokens[17],)}}
    for length, end in ends.items():
        sampling = msgspec.structs.replace(GREEDY, **end)
        driver = pair.driver(guessing=True)
        sequence = driver.open(Sequence(0, _prompt(9), sampling))
        driver.prefill(sequence)
        for _ in range(40):
            driver.step(decodes=[sequence], drafts=6)
        kept = sequence.output[:length]
        assert kept == tokens[:length]
        if not sampling.stop_token_ids:
            assert len(sequence.output) == length


@pytest.mark.parametrize(
    ("sampled", "rows"),
    [([9, 9, 9], 1), ([5, 9, 9], 2), ([5, 6, 9], 3), ([5, -1, 9], 1), ([-1, 6, 9], 1), ([5, 6, -1], 2)],
)
def test_rows_count_up_to_the_first_wrong_guess_or_failure(sampled: list[int], rows: int) -> None:
    assert Run(0, (4, 5, 6)).confirmed(sampled) == rows


def test_a_row_that_fails_behind_a_guess_fails_when_it_is_its_turn(
    llama: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens up to there come out, then the sentence, as they do without a guess."""
    from gpu.loading import load_executor
    from gpu.models.base import Inputs

    executor = load_executor(_config(llama, ExecutorKind.MODEL, Speculate.NGRAM, 8), print)
    forward = executor._model.forward

    def broken(inputs: Inputs) -> Any:
        logits = forward(inputs)
        at = inputs.positions if inputs.rows is None else inputs.positions[inputs.rows]
        logits[at >= 60] = torch.nan
        return logits

    def outcome(drafts: int) -> tuple[list[int], str]:
        driver = Driver(executor, speculates=True)
        sequence = driver.open(Sequence(0, _prompt(21), GREEDY))
        driver.prefill(sequence)
        while True:
            done = driver.step(decodes=[sequence], drafts=drafts)
            if done.failed:
                assert sequence.output.pop() == -1
                return sequence.output, done.failed[0][1].message

    monkeypatch.setattr(executor._model, "forward", broken, raising=False)
    assert outcome(6) == outcome(0)
    assert len(outcome(6)[0]) == 40


def test_a_plan_of_which_nobody_has_a_row_lands_empty(pair: Pair) -> None:
    driver = pair.driver(guessing=True)
    sequence = driver.open(Sequence(0, _prompt(5), SamplingParams(seed=1, max_tokens=1)))
    driver.prefill(sequence)
    done = driver.step(decodes=[sequence], drafts=3)
    assert (done.slots, done.tokens, done.drafted) == (b"", b"", 0)
