"""How many steps the decodes of one plan run in a row.

Each result that comes back costs a wake-up of the scheduler, the tokenizer and the frontend, and with a small
model that is more than the step itself. So while nobody waits and nobody is prefilled, a plan whose steps are
short runs several of them, and their tokens come back together: `burst_us` after the first of them at the
latest, sooner than a screen shows its next picture. What a result costs grows with its rows, and so does
the time that it may wait, up to WHOLE times as long. Where nobody sees any of the answers before they are
whole it is always so long: only who comes meanwhile has to wait for it. Each token is a function of its
request and position, so they are the same as one by one.
"""

from __future__ import annotations

MOST = 16
"""Rounds of a plan at most."""

WHOLE = 4
"""How many times as long results may wait where no answer is streamed, and at most where many are."""

CROWD = 16
"""Streamed answers beyond which results may wait longer, in proportion."""


class Stride:
    """Learns what a step takes. burst_us: microseconds that results may wait; 0: every step by itself."""

    def __init__(self, burst_us: int) -> None:
        self._burst_us = burst_us
        self._step_us = WHOLE * burst_us
        self._rows = 1 << 20

    def took(self, elapsed_us: int, rounds: int, rows: int) -> None:
        """A flight with nothing but decodes took so long, for so many rounds of so many rows."""
        self._step_us = (self._expected_us(rows) + elapsed_us // rounds) // 2
        self._rows = max(1, rows)

    def rounds(self, rows: int, *, watched: bool) -> int:
        """How many steps may run in a row. watched: whether any of the answers is streamed."""
        crowd = min(WHOLE * CROWD, max(CROWD, rows)) if watched else WHOLE * CROWD
        return max(1, min(MOST, self._burst_us * crowd // (CROWD * max(1, self._expected_us(rows)))))

    def _expected_us(self, rows: int) -> int:
        """What a step of so many rows takes: where there are more than there were, in proportion."""
        return self._step_us * max(rows, self._rows) // self._rows
