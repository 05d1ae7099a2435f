"""The waiting sequences, in the order in which they are to be admitted.

In front, whatever the policy: suspects (they run alone, so nobody may overtake them for ever), then what
was retracted or lost its executor, each by arrival. Behind them, by policy:

    fcfs      by arrival
    priority  lower value first (as in vLLM), then by arrival
    lpm       longest cached prefix first, then by arrival; plain fcfs above LPM_LIMIT waiting,
              where looking up every prefix each turn would cost more than it gains
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

from actors.scheduler.sequence import Sequence
from protocols.config import Policy

LPM_LIMIT = 128

Key = tuple[int, int, int]


class WaitingQueue:
    """A sorted list. Adding and removing cost a binary search and one memmove of pointers."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._entries: list[tuple[Key, Sequence]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def reorder(self, policy: Policy) -> None:
        """Admit in another order from now on."""
        self._policy = policy
        waiting = self.all()
        self._entries.clear()
        for sequence in waiting:
            self.add(sequence)

    def add(self, sequence: Sequence) -> None:
        """Put `sequence` in its place."""
        bisect.insort(self._entries, (self._key(sequence), sequence), key=lambda entry: entry[0])

    def remove(self, sequence: Sequence) -> None:
        """Take `sequence` out; nothing that its place depends on may have changed since `add`."""
        at = bisect.bisect_left(self._entries, self._key(sequence), key=lambda entry: entry[0])
        assert self._entries[at][1] is sequence
        del self._entries[at]

    def first(self, count: int, prefix: Callable[[Sequence], int]) -> list[Sequence]:
        """The next `count` to admit. prefix: pages of a sequence that are cached."""
        if self._policy is Policy.LPM and len(self._entries) <= LPM_LIMIT:
            keyed = [(key[0], -prefix(sequence), key[2], sequence) for key, sequence in self._entries]
            keyed.sort(key=lambda entry: entry[:3])
            return [entry[3] for entry in keyed[:count]]
        return [sequence for _, sequence in self._entries[:count]]

    def suspect(self) -> Sequence | None:
        """The first, if it is a suspect: then it is to run alone before anybody else is admitted."""
        first = self._entries[0][1] if self._entries else None
        return first if first is not None and first.suspect else None

    def all(self) -> list[Sequence]:
        """Everybody, in order."""
        return [sequence for _, sequence in self._entries]

    def _key(self, sequence: Sequence) -> Key:
        front = 0 if sequence.suspect else 1 if sequence.retracted else 2
        ranked = self._policy is Policy.PRIORITY and front == 2
        return (front, sequence.priority if ranked else 0, sequence.order)
