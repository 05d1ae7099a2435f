"""When a receiver goes on looking for mail before it parks."""

from __future__ import annotations

from itertools import pairwise

from runtime.patience import HOLDOFF_LAST, POLL_NS, SHORT_WAIT_NS, Patience


def test_patience_begins_with_a_short_wait_and_lasts_while_it_is_rewarded() -> None:
    patience = Patience()
    assert patience.nanoseconds == 0
    patience.parked(SHORT_WAIT_NS)
    assert patience.nanoseconds == 0, "long waits are slept through"
    patience.parked(SHORT_WAIT_NS - 1)
    for _ in range(3):
        assert patience.nanoseconds == POLL_NS
        patience.found()
    patience.parked(10)
    assert patience.nanoseconds == 0, "in vain once is enough"


def test_patience_that_is_never_rewarded_fades() -> None:
    patience, polls = Patience(), []
    for wait in range(20_000):
        patience.parked(10)
        if patience.nanoseconds:
            polls.append(wait)
    gaps = [later - earlier for earlier, later in pairwise(polls)]
    assert gaps == sorted(gaps) and gaps[0] <= 3 and gaps[-1] >= HOLDOFF_LAST
    patience = Patience()
    patience.parked(10)
    patience.found()
    patience.parked(10)
    patience.parked(10)
    assert patience.nanoseconds == POLL_NS, "a success makes the next try near again"
