"""Where the last tokens of a text occurred before: the guess is that what followed then follows again.

For each length of n-gram there is a table from the hash of the n-gram to the position after its last
occurrence. A newer n-gram takes the place of an older one with the same hash, and a find is compared token by
token, so tables need no more room than the text. A token costs one hash and one store a length, whatever the
length of the text.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

MAX_ENTRIES = 1 << 17
"""Of one table, 4 bytes each; a longer text forgets some of its older n-grams."""

_WORD = (1 << 64) - 1
_FACTORS = tuple((0x9E3779B97F4A7C15 * (2 * i + 1) ** 5) & _WORD | 1 for i in range(16))
"""What the newest token of an n-gram, the one before it and so on are multiplied with: odd, 64 bits."""

MAX_LENGTH = len(_FACTORS)


class Ngrams:
    """A growing text of token ids, indexed by its n-grams of `shortest` to `longest` tokens.

    history: int32 tokens to begin with. capacity: tokens that the text may have one day.
    """

    def __init__(self, history: bytes, capacity: int, shortest: int, longest: int) -> None:
        assert 1 <= shortest <= longest <= MAX_LENGTH
        self.tokens = array("i", history)
        bits = (min(2 * max(capacity, 8), MAX_ENTRIES) - 1).bit_length()
        self._shift = 64 - bits
        self._shortest = shortest
        tables = np.zeros((longest - shortest + 1, 1 << bits), np.int32)
        self._index(tables, np.frombuffer(history, "<i4").astype(np.uint64))
        self._tables = [table.data for table in tables]
        self._newest = self._hashes()

    def append(self, token: int) -> None:
        """The text goes on with `token`."""
        here = len(self.tokens)
        for table, place in zip(self._tables, self._newest, strict=False):
            table[place] = here
        self.tokens.append(token)
        self._newest = self._hashes()

    def guess(self, count: int) -> list[int]:
        """`count` tokens that may come next, or none. What repeats itself is taken to go on repeating."""
        if count <= 0:
            return []
        tokens, end = self.tokens, len(self.tokens)
        for index in range(len(self._newest) - 1, -1, -1):
            after, length = self._tables[index][self._newest[index]], self._shortest + index
            if after and tokens[after - length : after] == tokens[end - length :]:
                return [tokens[after + i % (end - after)] for i in range(count)]
        return []

    def _index(self, tables: npt.NDArray[np.int32], tokens: npt.NDArray[np.uint64]) -> None:
        """Enter every n-gram of the history that has a successor."""
        ends = len(tokens) - 1
        total: npt.NDArray[np.uint64] = np.zeros(max(ends, 0), np.uint64)
        for length in range(1, self._shortest + len(tables)):
            if length > ends:
                return
            total = total[1:] if length > 1 else total
            total = total + tokens[: ends - length + 1] * np.uint64(_FACTORS[length - 1])
            if length >= self._shortest:
                places = (total >> np.uint64(self._shift)).astype(np.int64)
                tables[length - self._shortest, places] = np.arange(length, ends + 1)

    def _hashes(self) -> list[int]:
        """Of the n-grams that end the text, as places in the tables; fewer in a short text."""
        newest = self.tokens[: -self._shortest - len(self._tables) : -1]
        total, places = 0, []
        for length, (token, factor) in enumerate(zip(newest, _FACTORS, strict=False), 1):
            total += token * factor
            if length >= self._shortest:
                places.append((total & _WORD) >> self._shift)
        return places
