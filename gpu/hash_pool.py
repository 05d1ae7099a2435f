"""What stands for the KV pool in the hash executor: one token for each page and offset, read back through
block tables.

Each page has a digest, the sum of a mix of (offset, token) over what it holds, and each slot the digests
that it expects of its pages, so that a decode compares a few words and not the context. The number of the
weights is mixed in: what other weights wrote does not read back either.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocols.plan import PageGrant

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_EMPTY = -1


class HashPool:
    """`pages` pages of `page_size` tokens, and block tables of `width` entries for `slots` slots.

    position [slots]: length of each slot's context. astray [slots]: whether some of it did not read back as
    the slot wrote it. The page after the last one stands for entries that were never granted.
    """

    def __init__(self, pages: int, page_size: int, slots: int, width: int) -> None:
        self._pages, self._page_size = pages, page_size
        self._tokens = np.full((pages + 1, page_size), _EMPTY, np.int64)
        self._digests = np.zeros(pages + 1, np.uint64)
        self._tables = np.full((slots, width), pages, np.int64)
        self._expected = np.zeros((slots, width), np.uint64)
        self.position = np.zeros(slots, np.int64)
        self.astray = np.zeros(slots, np.bool_)

    @property
    def nbytes(self) -> int:
        """Bytes of what the pages hold."""
        return self._tokens.nbytes

    def granted(self, slot: int) -> int:
        """Tokens that the pages of a slot have room for."""
        return int(np.count_nonzero(self._tables[slot] != self._pages)) * self._page_size

    def close(self, slot: int) -> None:
        """A slot has no pages any more."""
        self._tables[slot] = self._pages

    def grant(self, grant: PageGrant) -> None:
        """Enter pages into the table of a slot."""
        pages = np.frombuffer(grant.pages, "<i4")
        assert pages.size == 0 or 0 <= pages.min() <= pages.max() < self._pages
        self._tables[grant.slot, grant.first : grant.first + len(pages)] = pages

    def write(self, slot: int, start: int, tokens: Ints, weights: int) -> None:
        """A chunk of a slot's context, at positions from `start` on."""
        first, end = start // self._page_size, start + len(tokens)
        table = self._tables[slot, first : -(-end // self._page_size)]
        held = self._tokens[table].reshape(-1)
        held[start - first * self._page_size :] = _EMPTY
        held[start - first * self._page_size : end - first * self._page_size] = tokens
        self._tokens[table] = held.reshape(len(table), self._page_size)
        self._digests[table] = self._digest(self._tokens[table], weights)
        self.position[slot] = end

    def read(self, slot: int, end: int, weights: int) -> Ints:
        """The first `end` tokens of a slot's context. What is read now is expected from here on."""
        pages = -(-end // self._page_size)
        context = self._tokens[self._tables[slot, :pages]].reshape(-1)
        context[end:] = _EMPTY
        self._expected[slot, :pages] = self._digest(context.reshape(pages, self._page_size), weights)
        return context[:end]

    def append(self, slots: Ints, tokens: Ints, weights: int) -> None:
        """A token at the next position of each slot; and see that the contexts are as expected."""
        positions = self.position[slots]
        entry, offset = np.divmod(positions, self._page_size)
        pages = self._tables[slots, entry]
        held = self._tokens[pages]
        columns = np.arange(self._page_size)
        held[columns >= offset[:, None]] = _EMPTY
        held[np.arange(len(slots)), offset] = tokens
        self._tokens[pages] = held
        self._digests[pages] = self._digest(held, weights)
        so_far = np.where(offset > 0, self._expected[slots, entry], 0)
        self._expected[slots, entry] = so_far + _mix(offset, tokens, weights)
        self.position[slots] = positions + 1
        used = int(entry.max()) + 1
        differs = self._digests[self._tables[slots, :used]] != self._expected[slots, :used]
        self.astray[slots] |= (differs & (np.arange(used) <= entry[:, None])).any(1)

    def scribble(self, slot: int, tokens: tuple[int, ...], weights: int) -> None:
        """Write tokens behind a slot's context, where they do not count."""
        for position, token in enumerate(tokens, int(self.position[slot])):
            entry, offset = divmod(position, self._page_size)
            page = self._tables[slot, entry]
            assert page < self._pages, "a guess has no page"
            self._tokens[page, offset] = token
            self._digests[page] = self._digest(self._tokens[page][None], weights)[0]

    def _digest(self, held: Ints, weights: int) -> Words:
        """Digest of pages that hold `held` [pages, page_size]: empty entries add nothing."""
        mixed = _mix(np.arange(held.shape[1]), held, weights)
        return np.where(held == _EMPTY, np.uint64(0), mixed).sum(1, dtype=np.uint64)


def shuffle(value: Words) -> Words:
    """splitmix64's finaliser (Steele et al., 2014), a bijection of 64-bit words."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _mix(offset: Ints, token: Ints, weights: int) -> Words:
    return shuffle((offset.astype(np.uint64) << np.uint64(40) ^ token.astype(np.uint64)) + _spread(weights))


def _spread(weights: int) -> np.uint64:
    return np.uint64(weights * 0xD6E8FEB86659FD93 & 2**64 - 1)
