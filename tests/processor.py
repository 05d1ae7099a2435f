"""Processor time of processes, which what else the machine does changes little."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterable

from tests.patience import PATIENCE


def seconds(pid: int) -> float:
    """What a process has used since it began, in user and system mode."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def least_share(pids: Iterable[int], limit: float, span: float = 2.0) -> float:
    """The part of a core that processes take together, in the first span (seconds) in which it is below
    `limit`, else in the quietest: what has just begun may have things to put away."""
    pids, shares = tuple(pids), [1e9]
    give_up = time.monotonic() + PATIENCE
    while min(shares) >= limit and time.monotonic() < give_up:
        before, began = sum(map(seconds, pids)), time.monotonic()
        time.sleep(span)  # the thing measured is time itself
        shares.append((sum(map(seconds, pids)) - before) / (time.monotonic() - began))
    return min(shares)
