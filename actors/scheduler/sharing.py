"""Prefixes that are being computed right now.

When several requests with one prefix arrive together (the choices of an n > 1 request, say), computing it
once is enough: the others wait until the pages of the first one are in the radix tree. That costs them
nothing, because the first one is in front of them in every plan's budget anyway.
"""

from __future__ import annotations

from actors.scheduler.radix import common_pages
from actors.scheduler.sequence import Sequence


class Upcoming:
    """Sequences whose prefill is not complete, found by namespace and first page."""

    def __init__(self, page_size: int) -> None:
        self._page_bytes = page_size * 4
        self._groups: dict[tuple[str, bytes], dict[Sequence, None]] = {}

    def add(self, sequence: Sequence) -> None:
        """The prefill of `sequence` begins."""
        self._groups.setdefault(self._key(sequence, sequence.fill), {})[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """The prefill of `sequence` is complete, or will not go on."""
        key = self._key(sequence, sequence.fill)
        group = self._groups.get(key, {})
        group.pop(sequence, None)
        if not group:
            self._groups.pop(key, None)

    def covers(self, sequence: Sequence, fill: bytes, cached: int) -> bool:
        """Whether somebody is computing pages that `sequence` could share beyond its `cached` ones."""
        if sequence.reads:
            return False
        group = self._groups.get(self._key(sequence, fill))
        if group is None or len(fill) <= self._page_bytes:
            return False
        usable = fill[: (len(fill) - 4) // self._page_bytes * self._page_bytes]
        return any(common_pages(usable, other.fill, self._page_bytes) > cached for other in group)

    def _key(self, sequence: Sequence, fill: bytes) -> tuple[str, bytes]:
        return (sequence.namespace, fill[: self._page_bytes])
