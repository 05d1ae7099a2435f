"""How many tokens the running sequences will still need: the estimate that admission goes by.

Reserving `max_tokens` for everybody would leave most of the pool idle, because most sequences stop long
before; reserving nothing would admit sequences only to throw them out again. The middle is a
ratio of the remaining `max_tokens` that starts high, decays while decoding goes well, and rises to what
was really used when sequences had to be retracted (SGLang's `new_token_ratio`, with its constants).
"""

from __future__ import annotations

INITIAL = 0.7
FLOOR = 0.14 * INITIAL
DECAY_STEPS = 600
CLIP = 4096
"""Remaining `max_tokens` beyond this do not count: hardly anybody uses them."""
MARGIN = 20
"""Tokens that each sequence is given beyond its present output when the ratio rises."""


class NewTokenRatio:
    """`value`: the share of its remaining `max_tokens` that a sequence is expected to use."""

    def __init__(self) -> None:
        self.value = INITIAL

    def decoded(self, rounds: int) -> None:
        """So many decode steps were planned."""
        self.value = max(FLOOR, self.value - rounds * (INITIAL - FLOOR) / DECAY_STEPS)

    def retracted(self, decoded: int, allowed: int, sequences: int) -> None:
        """Pages ran out. Of those still running: their output tokens, their `max_tokens`, their number."""
        self.value = min(1.0, max(self.value, (decoded + MARGIN * sequences) / (allowed + 1)))

    def idle(self) -> None:
        """Nothing runs: what was learnt is about other requests."""
        self.value = INITIAL
