"""The scene of a question that a helper process never answers, while it answers others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from protocols.errors import UserError

Ask = Callable[[], Awaitable[object]]


async def refusal_of(endless: Ask, *, meanwhile: Ask) -> UserError:
    """The refusal of a question that never ends; `meanwhile` another one is answered."""
    refused: list[UserError] = []

    async def hang() -> None:
        try:
            await endless()
        except UserError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang)
        await trio.testing.wait_all_tasks_blocked()
        assert await meanwhile()
        assert not refused
    (error,) = refused
    return error
