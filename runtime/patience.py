"""How long a receiver (`runtime.channel`) looks for mail before it parks."""

from __future__ import annotations

POLL_NS = 100_000
"""Nanoseconds for which a patient receiver looks again before it parks."""
SHORT_WAIT_NS = 200_000
"""A parked time, wake-up included, that would have been spent better looking."""
HOLDOFF_LAST = 64
"""Short waits to let pass, at most, before a receiver whose looking was in vain tries it again."""


class Patience:
    """Whether to go on looking for a moment before parking; learnt, as KVM's halt polling is.

    Parking and being woken costs both sides tens of microseconds, so while mail comes faster than that it
    is cheaper to look for it. A short parked wait makes the next wait begin with looking, and looking goes
    on for as long as it succeeds. Each failure doubles the number of short waits until the next try, so a
    receiver that shares its processor with the sender soon stops, and one whose mail comes every
    millisecond, or never, does not start.
    """

    __slots__ = ("_holdoff", "_penalty", "nanoseconds")

    def __init__(self) -> None:
        self.nanoseconds = 0
        self._holdoff = 0
        self._penalty = 1

    def found(self) -> None:
        """Note that looking found mail."""
        self._penalty = 1

    def parked(self, nanoseconds: int) -> None:
        """Note that the receiver was parked for so long, after looking in vain or not at all."""
        if self.nanoseconds:
            self.nanoseconds = 0
            self._holdoff = self._penalty
            self._penalty = min(2 * self._penalty, HOLDOFF_LAST)
        elif nanoseconds < SHORT_WAIT_NS:
            self._holdoff = max(self._holdoff - 1, 0)
            self.nanoseconds = 0 if self._holdoff else POLL_NS
