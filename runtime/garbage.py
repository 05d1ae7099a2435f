"""When an actor's garbage collector looks, and at what.

Nearly everything that an actor makes is freed by its reference counts; cycles are few (a cancelled scope, an
exception) and small. By Python's own thresholds a frontend with 64 streams spends a tenth of its time
walking over objects that live as long as it does.
"""

from __future__ import annotations

import gc

YOUNG = 10_000
"""Objects made, less those freed, between two looks at the young ones."""


def settle() -> int:
    """Whatever lives now is taken to live on: it is not looked at again until the next time, and the young
    ones seldom. What has become garbage since the last time is collected. How many objects live."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)
    return gc.get_freeze_count()
