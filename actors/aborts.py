"""Aborts that came before what they speak of: control mail overtakes data."""

from __future__ import annotations

from collections import OrderedDict

REMEMBERED = 4096
"""Aborts remembered; most are of requests that have come and gone, so the oldest are forgotten."""


class Aborts:
    """The latest aborted request ids."""

    def __init__(self) -> None:
        self._rids: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, rid: int) -> bool:
        return rid in self._rids

    def __len__(self) -> int:
        return len(self._rids)

    def add(self, rid: int) -> None:
        """Remember one."""
        self._rids[rid] = None
        if len(self._rids) > REMEMBERED:
            self._rids.popitem(last=False)
