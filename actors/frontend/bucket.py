"""A token bucket that several processes fill and look at, without a lock; sans-I/O, time is an argument.

Each frontend counts what its own requests spend, and sees the sum over all frontends. Its view of the bucket
is a debt: what was spent and has not been refilled. A request may begin while there is no more debt than the
bucket holds (one minute's tokens), and is charged as it goes; so a key may overdraw by what was begun, and
then waits longer. What the
others spent since this frontend last looked counts as spent then, so it must look now and then.
"""

from __future__ import annotations

import math

from runtime.vault import Use

MINUTE = 60.0
_NS = 1e-9


class Bucket:
    """One key's bucket as one frontend sees it. row: this frontend's words of the key (`Use`), where the view
    outlives the process."""

    def __init__(self, row: memoryview) -> None:
        self._row = row

    def debt(self, rate: int, spent: int, now_ns: int) -> float:
        """Tokens above the empty debt now, after `spent` tokens of all frontends; `rate`: tokens a minute."""
        row = self._row
        refilled = rate / MINUTE * max(0, now_ns - row[Use.STAMP_NS]) * _NS
        debt = max(0.0, row[Use.DEBT] / 1000 + max(0, spent - row[Use.SEEN]) - refilled)
        row[Use.DEBT], row[Use.STAMP_NS], row[Use.SEEN] = round(debt * 1000), now_ns, spent
        return debt


def wait_for_room(debt: float, rate: int) -> int:
    """Whole seconds until a request may begin; 0: now."""
    return math.ceil((debt - rate + 1) / rate * MINUTE) if debt >= rate else 0
