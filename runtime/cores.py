"""Who gets a core where there are fewer than want one."""

from __future__ import annotations

import contextlib
import os


def give_way() -> None:
    """From now on this process, when it is woken, takes a core that is free, or its turn, and none from who
    computes: an executor that has just told of a step goes on with the next one at once, and its mail is read
    beside that. Its share of the cores is what it was. Nothing changes where the system does not allow it."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
