"""The scheduler's core with a real model: guesses, depth, cache and retractions change no token."""

from __future__ import annotations

import pathlib
from collections import deque
from typing import Any

import numpy as np
import pytest

from actors.scheduler.commands import Emit, Launch, Load, Note
from actors.scheduler.core import Core
from actors.scheduler.speculation import Speculation
from protocols.config import Config, Speculate, read_model_card
from protocols.messages import SchedulerMail, Submit, TokenRow
from protocols.plan import ExecutorReady, Plan
from protocols.request import Finish
from protocols.sampling import SamplingParams
from tests.gpu.random_llama import random_llama

VOCAB = 97
NARROW = tuple((token, 40.0) for token in (5, 11, 17))
"""Three tokens that a random model then chooses among, so that much is guessed, right and wrong."""
PLAIN = SamplingParams(temperature=0.7, seed=1, max_tokens=40, logit_bias=NARROW)
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"seed": 2, "top_k": 2, "top_p": 0.9, "min_p": 0.01},
    {"repetition_penalty": 1.1, "frequency_penalty": 0.2},
    {"min_tokens": 12, "stop_token_ids": (11,)},
    {"temperature": 0.0, "stop_token_ids": (17,)},
    {"logprobs": 2},
    {"max_tokens": 3},
]

Outcome = dict[int, tuple[tuple[int, ...], Finish]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("llama")
    random_llama(directory, vocab_size=VOCAB, max_position_embeddings=256)
    return directory


def _submits() -> list[Submit]:
    """Two choices of each kind, some with a prompt in common."""
    rng = np.random.default_rng(0)
    stem = rng.integers(0, VOCAB, 12, dtype=np.int32)
    submits = []
    for kind, changes in enumerate(KINDS):
        own = rng.integers(0, VOCAB, 3 + kind, dtype=np.int32)
        prompt = (np.concatenate([stem, own]) if kind % 2 else own).astype("<i4").tobytes()
        sampling = SamplingParams(**{**_fields(PLAIN), **changes})
        submits += [Submit(2 * kind + choice, 0, choice, prompt, sampling) for choice in (0, 1)]
    return submits


def _fields(sampling: SamplingParams) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in sampling.__struct_fields__}


def _run(
    model: pathlib.Path, pages: int, page_size: int, core: Core, speculate: Speculate
) -> tuple[Outcome, Load]:
    """Everybody's tokens, and the last figures. The executor dies once on the way."""
    from gpu.loading import load_executor

    config = Config(
        read_model_card(model),
        device="cpu",
        dtype="float32",
        threads=1,
        pages=pages,
        page_size=page_size,
        max_running=16,
        speculate=speculate,
        speculate_min=1,
    )
    executor = load_executor(config, lambda _: None)
    outcome: Outcome = {submit.rid: ((), Finish.NONE) for submit in _submits()}
    ready = ExecutorReady(1, pages, page_size, 16, VOCAB)
    mail: list[SchedulerMail] = [ready, *_submits()]
    plans: deque[Plan] = deque()
    load, steps = None, 0
    while mail or plans:
        if not mail:
            done = executor.finish(executor.launch(plans.popleft()))
            mail, steps = [done], steps + 1
            if steps == 15:
                plans.clear()
                mail = [ExecutorReady(2, pages, page_size, 16, VOCAB)]
        commands, mail = core.turn(mail), []
        core.check()
        for command in commands:
            match command:
                case Launch(plan):
                    plans.append(plan)
                case Emit(_, rows):
                    for row in rows:
                        _take(outcome, row)
                case Load():
                    load = command
                case Note():
                    pass
                case _:
                    raise AssertionError(command)
    assert load is not None
    assert (load.running, load.waiting, load.pages_owned) == (0, 0, 0)
    return outcome, load


def _take(outcome: Outcome, row: TokenRow) -> None:
    tokens, finish = outcome[row.rid]
    assert finish is Finish.NONE and row.start == len(tokens) and row.error is None
    outcome[row.rid] = (*tokens, *row.tokens), row.finish


def test_guesses_and_rounds_change_no_token_of_a_model(model: pathlib.Path) -> None:
    expected, alone = _run(model, 400, 4, Core(depth=1, radix=False), Speculate.OFF)
    assert all(finish is not Finish.NONE for _, finish in expected.values())
    rounds = Core(depth=2, burst_us=60_000_000)
    outcome, load = _run(model, 400, 4, rounds, Speculate.OFF)
    assert outcome == expected and load.steps < alone.steps / 2
    preemptions = accepted = 0
    for depth, radix, pages, page_size, speculation in (
        (1, False, 400, 4, Speculation(6, 96)),
        (2, True, 400, 4, Speculation(6, 96)),
        (2, True, 45, 2, Speculation(4, 32)),
        (4, False, 80, 1, Speculation(3, 48)),
    ):
        core = Core(depth=depth, radix=radix, chunk_size=128, speculation=speculation)
        outcome, load = _run(model, pages, page_size, core, Speculate.NGRAM)
        assert outcome == expected
        preemptions, accepted = preemptions + load.preemptions, accepted + load.accepted
        assert load.accepted <= load.drafted
    assert preemptions > 0 and accepted > 100
