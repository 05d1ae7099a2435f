"""Guesses from the text: those of a search through all of it, whatever was known at the start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu import ngrams
from gpu.ngrams import Ngrams


def _ngrams(tokens: list[int], known: int, shortest: int = 2, longest: int = 4, capacity: int = 64) -> Ngrams:
    """The text `tokens`, of which the first `known` were there from the start."""
    text = Ngrams(np.array(tokens[:known], "<i4").tobytes(), capacity, shortest, longest)
    for token in tokens[known:]:
        text.append(token)
    return text


def _search(tokens: list[int], count: int, shortest: int, longest: int) -> list[int]:
    for length in range(longest, shortest - 1, -1):
        for after in range(len(tokens) - 1, length - 1, -1):
            if tokens[after - length : after] == tokens[len(tokens) - length :]:
                going_on = tokens[after:]
                return [going_on[i % len(going_on)] for i in range(count)]
    return []


@given(
    st.lists(st.integers(0, 3) | st.just(2**31 - 1), max_size=40),
    st.integers(0, 40),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 8),
)
def test_a_guess_is_what_a_search_finds(
    tokens: list[int], known: int, shortest: int, more: int, count: int
) -> None:
    longest = shortest + more
    text = _ngrams(tokens, min(known, len(tokens)), shortest, longest)
    assert text.tokens.tolist() == tokens
    assert text.guess(count) == _search(tokens, count, shortest, longest)


def test_what_repeats_itself_goes_on() -> None:
    assert _ngrams([7, 1, 2, 3, 1, 2, 3], 3).guess(7) == [1, 2, 3, 1, 2, 3, 1]
    assert _ngrams([5, 5, 5], 0).guess(4) == [5] * 4


def test_the_last_occurrence_counts_and_the_longest_match() -> None:
    assert _ngrams([1, 2, 8, 1, 2, 9, 1, 2], 8).guess(1) == [9]
    assert _ngrams([0, 1, 2, 8, 3, 1, 2, 9, 0, 1, 2], 8).guess(1) == [8]


def test_nothing_is_guessed_without_a_precedent() -> None:
    assert _ngrams([1, 2, 3, 4], 4).guess(3) == []
    assert _ngrams([1, 2, 1, 2], 4).guess(0) == []
    assert _ngrams([], 0).guess(3) == []


def test_a_text_beyond_the_tables_still_guesses_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory has a bound; what is forgotten is not guessed, and what is guessed has occurred."""
    monkeypatch.setattr(ngrams, "MAX_ENTRIES", 64)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 9, 500).tolist()
    text = _ngrams(tokens, 400, 2, 2, capacity=500)
    for _ in range(100):
        guess = text.guess(1)
        pair = text.tokens[-2:].tolist()
        everything = text.tokens.tolist()
        assert not guess or any(everything[i : i + 3] == [*pair, *guess] for i in range(len(everything) - 2))
        text.append(int(rng.integers(0, 9)))
