"""Philox4x32-10: random numbers as a pure function of a key and a counter.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A generator
with no state is what makes a resumed sequence exact: the number behind output token i depends on the
request's seed, its choice and the token's position, and on nothing that a process could lose.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

_NOWHERE = -(2**62)
"""A first position from which no other is near."""

_SCHEDULE = (np.arange(_ROUNDS, dtype=np.uint64)[:, None] * _WEYL)[:, :, None]
"""What round r adds to the two words of the key: [rounds, 2, 1]."""


def philox4x32(counter: Words, key: Words) -> Words:
    """Ten rounds over n independent blocks.

    counter: [4, n] and key: [2, n], 32-bit words held in uint64. Returns [4, n] words of 32 bits.
    """
    keys = (key + _SCHEDULE) & _LOW
    even, odd = counter[0::2], counter[1::2]
    for key_now in keys:
        product = even * _MULTIPLIERS
        even = (product >> _HALF)[::-1] ^ odd ^ key_now
        odd = (product & _LOW)[::-1]
    block = np.empty_like(counter)
    block[0::2], block[1::2] = even, odd
    return block


def uniforms(
    seeds: npt.NDArray[np.uint64], choices: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each row: key = seed, counter = (position, choice, 0)."""
    where = positions.astype(np.uint64)
    counter = np.stack([where & _LOW, where >> _HALF, choices, np.zeros_like(choices)])
    key = np.stack([seeds & _LOW, seeds >> _HALF])
    high, low = philox4x32(counter, key)[:2]
    bits = (high >> np.uint64(5)) << np.uint64(26) | (low >> np.uint64(6))
    return bits * 2.0**-53


class Uniforms:
    """`uniforms` of slots that advance one position at a time, computed for some positions ahead.

    Ten rounds over a handful of rows cost their calls and little else, so they are made for many at once.
    """

    AHEAD = 32

    def __init__(self, slots: int) -> None:
        self._first = np.full(slots, _NOWHERE)
        self._table = np.zeros((slots, self.AHEAD))

    def forget(self, slot: int) -> None:
        """The slot's seed or choice is another."""
        self._first[slot] = _NOWHERE

    def at(
        self,
        slots: npt.NDArray[np.int32],
        seeds: npt.NDArray[np.uint64],
        choices: npt.NDArray[np.uint64],
        positions: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float64]:
        """The numbers of n rows: float64 [n]. A slot may have up to AHEAD, at ascending positions."""
        offset = positions - self._first[slots]
        missing = (offset < 0) | (offset >= self.AHEAD)
        if missing.any():
            rows = np.flatnonzero(np.isin(slots, slots[missing]))
            rows = rows[np.unique(slots[rows], return_index=True)[1]]
            places = positions[rows, None] + np.arange(self.AHEAD)
            keys, counters = (np.repeat(column[rows], self.AHEAD) for column in (seeds, choices))
            numbers = uniforms(keys, counters, places.reshape(-1))
            self._table[slots[rows]] = numbers.reshape(places.shape)
            self._first[slots[rows]] = positions[rows]
            offset = positions - self._first[slots]
        return self._table[slots, offset]
