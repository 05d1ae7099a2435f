"""What admission, planning and commit mean for a scheduler: the one thing in which a unified engine and
the two halves of a disaggregated one differ. The loop around them (`core`) is the same.
"""

from __future__ import annotations

from typing import Protocol

from actors.scheduler.batcher import Batcher, Draft
from actors.scheduler.sequence import Sequence
from protocols.request import Finish

_NONE, _STOP, _LENGTH = Finish.NONE, Finish.STOP, Finish.LENGTH


class Role(Protocol):
    """Three decisions of the loop, each over the same batcher."""

    def plan(self, batcher: Batcher, draft: Draft) -> None:
        """Give rows to sequences that run already."""

    def admit(self, batcher: Batcher, draft: Draft) -> None:
        """Let waiting sequences run, and give them rows."""

    goes_on: bool
    """Whether a token that neither stops a sequence nor is its last is appended and does no more."""

    def commit(self, sequence: Sequence, token: int) -> Finish:
        """`token` was sampled for `sequence`: append it, and say whether the sequence ends with it."""


class Unified:
    """Prefill and decode on one executor."""

    goes_on = True

    def plan(self, batcher: Batcher, draft: Draft) -> None:
        """Decodes first, then chunks of the prefills under way."""
        batcher.add_decodes(draft)
        batcher.add_chunks(draft)

    def admit(self, batcher: Batcher, draft: Draft) -> None:
        """In queue order, as slots, budget and pages allow."""
        batcher.admit(draft)

    def commit(self, sequence: Sequence, token: int) -> Finish:
        """STOP on a stop token, which is part of the output; LENGTH at the allowance. Progress clears
        the suspicion that `deaths` counts."""
        output = sequence.output
        output.append(token)
        sequence.deaths = 0
        if token in sequence.stops:
            return _STOP
        return _LENGTH if len(output) >= sequence.allowance else _NONE
