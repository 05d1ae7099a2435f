"""How much a step may guess.

A guess costs a row of the step whether it is right or not. Rows are cheap while few sequences run, because a
step then waits for the weights; they cost their full price in a crowd. So what a step may guess is bounded in
all, and shared by the sequences that decode in it: the more there are, the less each one guesses.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from actors.scheduler.running import Mask, Running
from protocols.config import Config, Speculate


@dataclasses.dataclass(frozen=True, slots=True)
class Speculation:
    """tokens: guesses of one sequence in one step at most; rows: of all together. Both 0: nobody guesses."""

    tokens: int = 0
    rows: int = 0

    @classmethod
    def of(cls, config: Config) -> Speculation:
        """What the options ask for."""
        if config.speculate is Speculate.OFF:
            return cls()
        return cls(config.speculate_tokens, config.speculate_rows)

    def guesses(self, running: Running, rows: Mask, budget: int) -> npt.NDArray[np.int64]:
        """By slot, how many tokens may be guessed behind the decodes `rows`; `budget` in all at most."""
        willing = rows & running.draftable
        spare = min(self.rows, budget)
        each = min(self.tokens, spare // max(1, int(willing.sum())))
        return np.where(willing, np.clip(running.limit - running.planned - 1, 0, max(0, each)), 0)

    def horizon(self, running: Running) -> npt.NDArray[np.int64]:
        """By slot, the positions that a flight launched now can need: every guess in the air may be right."""
        reach = running.planned + (1 + self.tokens) * (running.airborne + 1)
        nearest: npt.NDArray[np.int64] = np.minimum(reach, running.limit)
        return nearest
