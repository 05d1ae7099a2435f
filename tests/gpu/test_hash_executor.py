"""The hash executor is only as good an oracle as it is easily upset: each mistake must change the tokens."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
import unittest.mock

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.hash_executor import HashExecutor, hash_tokens
from protocols import oracle
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen
from protocols.sampling import SamplingParams
from tests.gpu.plans import Driver, Sequence, ints

VOCAB, PAGE_SIZE = 50021, 4
SAMPLING = SamplingParams(seed=11, max_tokens=40)
PROMPT = list(range(100, 113))


def _executor(step_ms: float = 0.0) -> HashExecutor:
    return HashExecutor(
        pages=40, page_size=PAGE_SIZE, slots=4, vocab_size=VOCAB, context=200, step_ms=step_ms
    )


def _expected(count: int, prompt: list[int] = PROMPT, sampling: SamplingParams = SAMPLING) -> list[int]:
    complete = msgspec.structs.replace(sampling, max_tokens=count)
    return list(oracle.continuation(ints(prompt), complete, 0, VOCAB)[0])


def _running(tokens: int = 6) -> tuple[Driver, Sequence]:
    driver = Driver(_executor())
    sequence = Sequence(0, list(PROMPT), SAMPLING)
    driver.generate(sequence, tokens)
    return driver, sequence


def _decode(driver: Driver, sequence: Sequence, count: int) -> list[int]:
    before = len(sequence.output)
    for _ in range(count):
        driver.step(decodes=[sequence])
    return sequence.output[before:]


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**63 - 1),
            st.integers(0, 100),
            st.integers(0, 2**31),
        ),
        min_size=1,
        max_size=5,
    ),
    vocab=st.integers(1, 2**31),
)
def test_the_hash_of_many_rows_is_that_of_each(rows: list[tuple[int, int, int, int]], vocab: int) -> None:
    key, seed, choice = (np.array(column, np.uint64) for column in list(zip(*rows, strict=True))[:3])
    position = np.array([row[3] for row in rows], np.int64)
    tokens = hash_tokens(key, seed, choice, position, vocab)
    assert tokens.tolist() == [oracle.hash_token(*row, vocab) for row in rows]


def test_what_comes_out_is_the_oracle() -> None:
    _, sequence = _running(30)
    assert sequence.output == _expected(30)


def test_stop_tokens_are_suppressed_as_the_oracle_says() -> None:
    stop = _expected(3)[1]
    sampling = SamplingParams(seed=11, max_tokens=40, min_tokens=3, stop_token_ids=(stop,))
    driver = Driver(_executor())
    sequence = Sequence(0, list(PROMPT), sampling)
    assert driver.generate(sequence, 8) == _expected(8, sampling=sampling)
    assert sequence.output[1] != stop


def _wrong_page(driver: Driver, sequence: Sequence) -> None:
    """The block table's second entry points to another page."""
    grant = PageGrant(0, 1, ints([driver.free[0]]))
    driver.executor.launch(Plan(driver.epoch, 90, grants=(grant,)))


def _page_reused_from_its_start(driver: Driver, sequence: Sequence) -> None:
    """Another sequence gets a page that is still in use, and the same tokens at another place."""
    other = driver.open(Sequence(1, [sequence.prompt[4], 7, 8]))
    driver.free.insert(0, sequence.pages[1])
    driver.prefill(other)


def _page_reused_in_its_middle(driver: Driver, sequence: Sequence) -> None:
    grant = PageGrant(1, 0, ints([sequence.pages[2]]))
    opening = SlotOpen(1, 2, SAMPLING, 0, 4, cached=2)
    chunk = Chunk(1, 2, ints([5, 6]), False)
    driver.executor.launch(Plan(driver.epoch, 90, opens=(opening,), grants=(grant,), chunks=(chunk,)))


def _missing_grant(driver: Driver, sequence: Sequence) -> None:
    """The next pages are taken, but never told."""
    while len(sequence.pages) * PAGE_SIZE < len(sequence.tokens) + 12:
        sequence.pages.append(driver.free.pop(0))
    sequence.granted = len(sequence.pages)


def _wrong_position(driver: Driver, sequence: Sequence) -> None:
    """A decode too many, whose token nobody takes."""
    plan = driver.plan([], [sequence])
    driver.executor.finish(driver.executor.launch(plan))


@pytest.mark.parametrize(
    "mistake",
    [_wrong_page, _page_reused_from_its_start, _page_reused_in_its_middle, _missing_grant, _wrong_position],
)
def test_a_mistake_makes_every_later_token_wrong(mistake: object) -> None:
    driver, sequence = _running()
    assert callable(mistake)
    mistake(driver, sequence)
    wrong = _decode(driver, sequence, 12)[-6:]
    assert all(a != b for a, b in zip(wrong, _expected(18)[-6:], strict=True))


@pytest.mark.parametrize("damage", ["prompt", "output", "gap", "shorter"])
def test_a_wrong_re_prefill_makes_every_later_token_wrong(damage: str) -> None:
    driver, sequence = _running()
    driver.close(sequence)
    known = list(sequence.tokens)
    match damage:
        case "prompt":
            known[3] += 1
        case "output":
            known[-2] += 1
        case "gap":
            known.pop(-2)
        case _:
            known.pop()
    again = Sequence(0, known[: len(PROMPT)], SAMPLING, output=known[len(PROMPT) :])
    driver.prefill(driver.open(again))
    tokens = [again.output[-1], *_decode(driver, again, 5)]
    expected = _expected(12)[6:]
    if damage == "shorter":
        assert tokens == _expected(11)[5:], "a shorter but true history is no damage"
    else:
        assert all(a != b for a, b in zip(tokens, expected, strict=True))


@pytest.mark.parametrize("wrong", ["other prompt", "other output", "order", "one inside"])
def test_wrong_cached_pages_make_every_token_wrong(wrong: str) -> None:
    driver, sequence = _running(8)
    other = Sequence(1, list(PROMPT), SAMPLING, choice=1)
    if wrong == "other prompt":
        other.prompt[0] += 1
    driver.generate(other, 8)
    pages = list(sequence.pages[:5])
    match wrong:
        case "other prompt":
            pages[0] = other.pages[0]
        case "other output":
            pages = list(other.pages[:5])
        case "order":
            pages[1], pages[2] = pages[2], pages[1]
        case _:
            pages[1] = other.pages[2]
    again = driver.open(Sequence(2, list(PROMPT), SAMPLING, output=list(sequence.output)), pages)
    driver.prefill(again)
    tokens = [again.output[-1], *_decode(driver, again, 3)]
    assert all(a != b for a, b in zip(tokens, _expected(12)[8:], strict=True))


def test_right_cached_pages_are_right() -> None:
    driver, sequence = _running(8)
    again = driver.open(Sequence(2, list(PROMPT), SAMPLING, output=list(sequence.output)), sequence.pages[:5])
    driver.prefill(again)
    _decode(driver, again, 4)
    assert again.output == _expected(13)


def test_pages_and_slots_that_were_used_before_are_as_good_as_new() -> None:
    """Also beside a longer neighbour, and where decodes enter a page that still holds other tokens."""
    driver, first = _running(20)
    longer = driver.open(Sequence(1, list(range(60)), SAMPLING))
    driver.prefill(longer)
    for _ in range(3):
        driver.close(first)
        first = driver.open(Sequence(0, list(PROMPT[:5]), SAMPLING))
        driver.prefill(first)
        while len(first.output) < 20:
            driver.step(decodes=[longer, first])
        assert first.output == _expected(20, PROMPT[:5])
    assert longer.output[:40] == _expected(40, list(range(60)))


def test_a_closed_slot_leaves_no_pages_behind() -> None:
    driver, sequence = _running(8)
    driver.close(sequence)
    again = driver.open(Sequence(0, list(PROMPT), SAMPLING))
    again.pages, again.granted = sequence.pages, len(sequence.pages)
    driver.step([(again, 0, len(PROMPT))])
    assert again.output[0] != _expected(1)[0]


def test_simulated_steps_follow_one_another() -> None:
    executor = _executor(step_ms=100.0)
    assert executor.asynchronous
    start = time.monotonic()
    with unittest.mock.patch.object(time, "sleep", side_effect=AssertionError("launching does not wait")):
        flights = [executor.launch(Plan(1, step)) for step in range(3)]
    done = [executor.finish(flight) for flight in flights]
    assert time.monotonic() - start >= 0.3
    assert all(later.lands_ns - sooner.lands_ns >= 100e6 for sooner, later in itertools.pairwise(flights))
    assert sum(step.elapsed_us for step in done) <= (time.monotonic() - start) * 1e6


def test_it_needs_no_torch() -> None:
    code = "import sys, gpu.hash_executor; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
