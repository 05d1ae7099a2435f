"""Philox against its published vectors, and the uniform numbers made of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.philox import Uniforms, philox4x32, uniforms

WORD = st.integers(0, 2**32 - 1)

# Random123's kat_vectors for philox4x32-10: counter, key, result. The last are digits of pi.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def _column(words: list[int]) -> np.ndarray:
    return np.array(words, np.uint64)[:, None]


def _plain(counter: list[int], key: list[int]) -> list[int]:
    """The paper's description, one block, plain integers."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (
            (right >> 32) ^ b ^ k,
            right & 0xFFFFFFFF,
            (left >> 32) ^ d ^ m,
            left & 0xFFFFFFFF,
        )
        k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_the_published_vectors(counter: list[int], key: list[int], result: list[int]) -> None:
    assert philox4x32(_column(counter), _column(key))[:, 0].tolist() == result
    assert _plain(counter, key) == result


@given(st.lists(st.tuples(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD)), min_size=1, max_size=6))
def test_many_blocks_at_once_are_each_block(
    blocks: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    counters = np.array([counter for counter, _ in blocks], np.uint64).T
    keys = np.array([key for _, key in blocks], np.uint64).T
    expected = [_plain(list(counter), list(key)) for counter, key in blocks]
    assert philox4x32(counters, keys).T.tolist() == expected


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**40))
def test_a_uniform_number_is_53_bits_of_the_block(seed: int, choice: int, position: int) -> None:
    words = _plain([position & 0xFFFFFFFF, position >> 32, choice, 0], [seed & 0xFFFFFFFF, seed >> 32])
    expected = ((words[0] >> 5) * 2**26 + (words[1] >> 6)) / 2**53
    arrays = np.array([seed], np.uint64), np.array([choice], np.uint64), np.array([position])
    assert uniforms(*arrays).tolist() == [expected]
    assert 0.0 <= expected < 1.0


def test_uniform_numbers_are_uniform() -> None:
    n, bins = 100_000, 100
    zeros = np.zeros(n, np.uint64)
    drawn = uniforms(zeros + np.uint64(9), zeros, np.arange(n))
    counts = np.bincount((drawn * bins).astype(np.int64), minlength=bins)
    statistic = ((counts - n / bins) ** 2 / (n / bins)).sum()
    assert statistic < (bins - 1) + 4 * (2 * (bins - 1)) ** 0.5
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


def test_numbers_made_ahead_are_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**63, 8).astype(np.uint64)
    choices = np.arange(8, dtype=np.uint64)
    positions = rng.integers(0, 2**33, 8)
    ahead = Uniforms(8)
    for step in range(100):
        slots = rng.permutation(8)[: 1 + step % 8].astype(np.int32)
        if step % 30 == 29:
            positions[2] -= 20
            seeds[3] += np.uint64(1)
            ahead.forget(3)
        given = seeds[slots], choices[slots], positions[slots]
        assert np.array_equal(ahead.at(slots, *given), uniforms(*given))
        positions[slots] += 1
