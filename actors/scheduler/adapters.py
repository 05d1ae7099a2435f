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
"""Who came so many arrivals after a sequence that waits for a slot does not overtake it."""


class AdapterSlots:
    """`slots` places, and the sequences that use them. adapters: those that are loaded."""

    def __init__(self, slots: int, adapters: Iterable[Adapter] = ()) -> None:
        self._slots = slots
        self._users: Counter[int] = Counter()
        self.set(adapters)

    def set(self, adapters: Iterable[Adapter]) -> None:
        """From now on these are loaded."""
        self._loaded = {adapter.id for adapter in adapters}
        self._pinned = {adapter.id for adapter in adapters if adapter.pinned}

    def knows(self, id: int) -> bool:
        """Whether it is loaded, or no adapter."""
        return not id or id in self._loaded

    def fits(self, id: int) -> bool:
        """Whether a sequence through adapter `id`, 0 for none, can be opened now."""
        if not id or id in self._users or id in self._pinned:
            return True
        return len(self._users.keys() | self._pinned) < self._slots

    def take(self, id: int) -> None:
        """A sequence through it is opened."""
        if id:
            self._users[id] += 1

    def give(self, id: int) -> None:
        """Such a sequence is closed."""
        if id:
            self._users[id] -= 1
            if not self._users[id]:
                del self._users[id]

    def forget(self) -> None:
        """No sequence is open."""
        self._users.clear()
