"""Keeps Python's garbage collector from walking over long-lived objects again and again.

Nearly everything that an actor makes is freed by its reference counts; cycles are few (a cancelled scope, an
exception) and small. By Python's own thresholds a frontend with 64 streams spends a tenth of its time
walking over objects that live as long as it does.
"""

from __future__ import annotations

import gc

YOUNG = 10_000
"""Objects made, less those freed, between two looks at the young ones."""


def settle() -> int:
    """Collect what is garbage now, and freeze the rest: frozen objects are not looked at until the next call,
    and young ones seldom. Returns how many objects live."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)
    return gc.get_freeze_count()
