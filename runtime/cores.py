"""Which processes get a core while there are fewer cores than processes that want one."""

from __future__ import annotations

import contextlib
import os


def give_way() -> None:
    """Give this process the policy SCHED_BATCH: when it is woken it takes a free core or waits for its turn,
    and does not preempt a process that computes. So an executor that has just reported a step begins the next
    one at once. The process's share of the cores stays the same. Does nothing where the system does not allow
    it."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
