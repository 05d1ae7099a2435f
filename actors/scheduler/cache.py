"""The KV cache: the page pool and the radix tree together, and what each sequence holds of them.

Every page is at every moment in exactly one of three hands:

    free (pool)  +  cached (radix tree)  +  owned (sequences)  =  total

A running sequence's block table starts with pages of the tree, which it has locked, and goes on
with pages of its own. As its prefill lands, its full pages move into the tree, so that others share them
while it still runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from actors.scheduler.pages import PagePool
from actors.scheduler.radix import Node, RadixTree
from actors.scheduler.sequence import Sequence

EVICT_PAGES = 16
"""Pages evicted at once at least: cutting a long leaf page by page would copy its key each time."""


class KvCache:
    """Pages of `page_size` tokens. `radix` off: nothing is shared and nothing outlives its sequence."""

    def __init__(self, pages: int, page_size: int, radix: bool) -> None:
        self.page_size = page_size
        self.owned = 0
        self._pool = PagePool(pages)
        self._tree = RadixTree(page_size)
        self._radix = radix

    @property
    def total(self) -> int:
        """Pages in all."""
        return self._pool.total

    @property
    def capacity(self) -> int:
        """Tokens that one sequence can hold when it has every page."""
        return self._pool.total * self.page_size

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return len(self._pool)

    @property
    def cached(self) -> int:
        """Pages in the radix tree."""
        return self._tree.total

    @property
    def locked(self) -> int:
        """Pages in the radix tree that sequences use."""
        return self._tree.locked

    @property
    def available(self) -> int:
        """Pages that can be had now: free, or cached and not in use."""
        return len(self._pool) + self._tree.evictable

    def prefix(self, sequence: Sequence, fill: bytes) -> int:
        """Pages at the start of `fill` that are cached."""
        return (
            self._tree.probe(sequence.namespace, fill, self._reusable(sequence, fill)) if self._radix else 0
        )

    def attach(self, sequence: Sequence, fill: bytes, reserve: float) -> bool:
        """Give `sequence` pages for all tokens of `fill`, cached ones where their prefix is known.

        reserve: pages that must stay available. False, and nothing changes, when there are too few.
        """
        assert not sequence.pages and sequence.node is None
        needed = -(-len(fill) // (4 * self.page_size))
        node: Node | None = None
        pages: list[int] = []
        if self._radix:
            node, pages = self._tree.acquire(sequence.namespace, fill, self._reusable(sequence, fill))
        if needed - len(pages) + reserve > self.available:
            if node is not None:
                self._tree.release(node)
            return False
        sequence.node, sequence.shared, sequence.fill = node, len(pages), fill
        sequence.pages = pages + self.take(needed - len(pages))
        return True

    def grow(self, sequence: Sequence, pages: int) -> bool:
        """So many pages more for `sequence`; False, and nothing changes, when there are too few."""
        if pages > self.available:
            return False
        sequence.pages += self.take(pages)
        return True

    def take(self, count: int) -> list[int]:
        """Take `count` pages for sequences; the caller has made sure that as many are available."""
        short = count - len(self._pool)
        if short > 0:
            self._pool.give(self._tree.evict(max(short, EVICT_PAGES)))
        self.owned += count
        return self._pool.take(count)

    def publish(self, sequence: Sequence, end: int) -> None:
        """The KV of the first `end` tokens of `sequence.fill` is computed: share its full pages.

        Where another sequence has published the same tokens meanwhile, this one keeps its own copy.
        """
        upto = end // self.page_size
        if sequence.node is None or upto <= sequence.shared:
            return
        key = sequence.fill[sequence.shared * self._tree.page_bytes : upto * self._tree.page_bytes]
        leaf = self._tree.publish(sequence.node, key, sequence.pages[sequence.shared : upto])
        if leaf is not None:
            self.owned -= upto - sequence.shared
            sequence.node, sequence.shared = leaf, upto

    def detach(self, sequence: Sequence, tokens: bytes) -> None:
        """Take every page from `sequence`. tokens: those at its start whose KV is computed, int32.

        Their full pages go into the tree; duplicates and the unaligned tail become free.
        """
        own = sequence.pages[sequence.shared :]
        self.owned -= len(own)
        if sequence.node is None:
            self._pool.give(own)
        else:
            full = max(len(tokens) // self._tree.page_bytes - sequence.shared, 0)
            key = tokens[sequence.shared * self._tree.page_bytes :][: full * self._tree.page_bytes]
            self._pool.give(self._tree.insert(sequence.node, key, own[:full]))
            self._pool.give(own[full:])
            self._tree.release(sequence.node)
        sequence.node, sequence.shared, sequence.pages = None, 0, []

    def flush(self) -> None:
        """Forget every prefix that nobody uses."""
        self._pool.give(self._tree.evict(self._tree.evictable))

    def conserved(self) -> bool:
        """The cheap form of `check`: the counts add up."""
        return self.free + self.cached + self.owned == self.total

    def check(self, sequences: Iterable[Sequence]) -> None:
        """AssertionError unless every page is in exactly one hand. sequences: those that hold pages."""
        hands = [self._pool.free(), self._tree.pages()]
        for sequence in sequences:
            own = sequence.pages[sequence.shared :]
            hands.append(frozenset(own))
            assert len(hands[-1]) == len(own), "a block table names a page twice"
            assert set(sequence.pages[: sequence.shared]) <= hands[1], "a shared page is not in the tree"
        assert sum(map(len, hands)) == self.total, "pages are lost, or in two hands"
        assert frozenset().union(*hands) == frozenset(range(self.total)), "pages are in two hands"
        assert sum(map(len, hands[2:])) == self.owned, "the count of owned pages is wrong"
        assert self.conserved()

    def _reusable(self, sequence: Sequence, fill: bytes) -> int:
        """Pages of `fill` that a cache hit may cover: the last token is always computed, for its logits, and
        all are where `sequence` reads them."""
        if sequence.reads:
            return 0
        return (len(fill) - 4) // self._tree.page_bytes
