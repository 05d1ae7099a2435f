"""Whether the scheduler may launch steps, and for whom, while an administrator has paused generation."""

from __future__ import annotations

from actors.scheduler.sequence import Sequence
from protocols.standing import PauseMode


class Pace:
    """Generation runs, or is paused in a mode; it also stands still while memory that steps need is
    released."""

    def __init__(self, mode: PauseMode | None = None, *, released: bool = False) -> None:
        self.mode = mode
        self.released = released

    @property
    def stands(self) -> bool:
        """Whether nothing may be launched."""
        return self.released or self.mode not in (None, PauseMode.WAIT)

    def admits(self, sequence: Sequence) -> bool:
        """Whether a waiting `sequence` may begin: in mode WAIT only whoever had begun before."""
        return self.mode is None or (self.mode is PauseMode.WAIT and sequence.retracted)
