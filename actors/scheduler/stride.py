"""How many steps the decodes of one plan run in a row.

Each result that comes back costs a wake-up of the scheduler, the tokenizer and the frontend, and with a small
model that is more than the step itself. So while nobody waits and nobody is prefilled, a plan whose steps are
short runs several of them, and their tokens come back together: `burst_us` after the first of them at the
latest, sooner than a screen shows its next picture. Where nobody sees any of the answers before they are
whole, WHOLE times as long: only who comes meanwhile has to wait for it. Each token is a function of its
request and position, so they are the same as one by one.
"""

from __future__ import annotations

MOST = 16
"""Rounds of a plan at most."""


WHOLE = 4
"""How much longer the results of answers that nobody watches may wait."""


class Stride:
    """Learns what a step takes. burst_us: microseconds that results may wait; 0: every step by itself."""

    def __init__(self, burst_us: int) -> None:
        self._burst_us = burst_us
        self._step_us = WHOLE * burst_us

    def took(self, elapsed_us: int, rounds: int) -> None:
        """So many rounds of nothing but decodes took so long."""
        self._step_us = (self._step_us + elapsed_us // rounds) // 2

    def rounds(self, *, watched: bool) -> int:
        """How many may run in a row. watched: somebody sees each token come."""
        burst_us = self._burst_us if watched else WHOLE * self._burst_us
        return max(1, min(MOST, burst_us // max(1, self._step_us)))
