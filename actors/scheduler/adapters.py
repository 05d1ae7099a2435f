"""Which adapters are in use, so that no more run at once than the executor has slots for.

An executor holds `slots` adapters at once. Pinned ones always have a slot; the others share what is left. A
sequence whose adapter finds none waits, and those behind it may overtake it with adapters that run already,
but only those that came not long after it: else an adapter with enough requests could keep another one out
for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from protocols.adapters import Adapter

OVERTAKING = 64
"""A sequence may overtake one that waits for a slot only if fewer than this many arrivals lie between
them."""


class AdapterSlots:
    """The adapter slots of an executor, `slots` of them, and the sequences that use them. adapters: those
    that are loaded."""

    def __init__(self, slots: int, adapters: Iterable[Adapter] = ()) -> None:
        self._slots = slots
        self._users: Counter[int] = Counter()
        self.set(adapters)

    def set(self, adapters: Iterable[Adapter]) -> None:
        """Replace the list of loaded adapters."""
        self._loaded = {adapter.id for adapter in adapters}
        self._pinned = {adapter.id for adapter in adapters if adapter.pinned}

    def knows(self, id: int) -> bool:
        """Whether adapter `id` is loaded; always for 0, no adapter."""
        return not id or id in self._loaded

    def fits(self, id: int) -> bool:
        """Whether a sequence through adapter `id`, 0 for none, can be opened now."""
        if not id or id in self._users or id in self._pinned:
            return True
        return len(self._users.keys() | self._pinned) < self._slots

    def take(self, id: int) -> None:
        """A sequence through the adapter was opened."""
        if id:
            self._users[id] += 1

    def give(self, id: int) -> None:
        """A sequence through the adapter was closed."""
        if id:
            self._users[id] -= 1
            if not self._users[id]:
                del self._users[id]

    def forget(self) -> None:
        """All sequences were closed."""
        self._users.clear()
