"""The page pool: which KV pages nobody holds."""

from __future__ import annotations

from collections.abc import Sequence


class PagePool:
    """A free list of page numbers 0 .. total - 1; the last page given back is the first one taken."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))

    def __len__(self) -> int:
        """Pages free."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` pages; the caller has made sure that there are as many."""
        assert 0 <= count <= len(self._free), "more pages taken than free"
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        return taken

    def give(self, pages: Sequence[int]) -> None:
        """Take pages back. That none comes back twice is verified by `check`, not in each call."""
        self._free.extend(pages)

    def free(self) -> frozenset[int]:
        """The free pages, for `check` functions; AssertionError when one is there twice."""
        distinct = frozenset(self._free)
        assert len(distinct) == len(self._free), "a page was freed twice"
        return distinct
