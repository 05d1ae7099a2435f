"""Progress reports of long verbs, for whoever waits for them."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import trio

from protocols.errors import several
from runtime.admin import Send

LOOK = 0.02
"""Seconds between two looks at what is waited for."""
TELL = 1.0
"""Seconds between two words about it, at least."""


async def tell(more: Send, text: str, **about: str) -> None:
    """Report something. That the listener has gone is no error."""
    with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError):
        await more({**about, "progress": text})


async def until_none(
    count: Callable[[], Awaitable[int]], noun: str, where: str, seconds: float, more: Send
) -> int:
    """Wait until there is nothing left to count, `seconds` at most, and tell meanwhile how much there is:
    "waiting for 3 `noun`s `where`". What is left in the end."""
    begun = trio.current_time()
    told, quiet_until = 0, begun
    while left := await count():
        now = trio.current_time()
        if now >= begun + seconds:
            return left
        if left != told and now >= quiet_until:
            await tell(more, f"waiting for {several(left, noun)} {where}")
            told, quiet_until = left, now + TELL
        await trio.sleep(LOOK)
    return 0
