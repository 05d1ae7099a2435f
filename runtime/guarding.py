"""Copies held files that somebody is about to write to, before they can.

The supervisor has a lease on each (fcntl(2), F_SETLEASE): whoever opens one to write to it, or truncates it,
is kept waiting by the kernel, for /proc/sys/fs/lease-break-time at most, until a copy in memory is in the
file's place. Where no lease can be had (a file of another user or of a network, or one that somebody writes
to already) the file is held and no more, and `Holdings.intact` tells what became of it.
"""

from __future__ import annotations

import signal
from typing import Any

import trio

from protocols.errors import VerbError
from runtime.holdings import Holdings


async def guard(holdings: Holdings, log: Any) -> None:
    """Guard all held files until cancelled."""
    with trio.open_signal_receiver(signal.SIGIO) as signals:
        holdings.lease()
        async for _ in signals:
            while threatened := holdings.threatened():
                await _rescue(holdings, threatened[0], log)


async def _rescue(holdings: Holdings, path: str, log: Any) -> None:
    """Replace a held file that somebody waits to write to by a copy."""
    original = holdings.again(path)
    try:
        copied = await trio.to_thread.run_sync(holdings.copy, original, original.name)
    except VerbError as error:
        log.error("held file not rescued", error=str(error))
    else:
        holdings.replace(path, copied)
        log.info("held file copied before it is written to", file=original.name, bytes=original.stamp[0])
    finally:
        holdings.give_way(path, original)
