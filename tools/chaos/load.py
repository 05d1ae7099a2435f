"""The load of every campaign: a set of requests, answered once in peace, then again and again under fire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import click
import trio

from tools.chaos import checker, clients, requests
from tools.chaos.checker import Verdict
from tools.chaos.clients import Receipt
from tools.chaos.company import Company

Answer = Callable[[str, int, dict[str, Any], int], Awaitable[Receipt]]
Ask = tuple[Answer, dict[str, Any]]

_PEACE_CLIENTS = 32


def asks(model: str, count: int, tokens: int, seed: int) -> list[Ask]:
    """`count` different requests, half of them responses and half of them chats, of up to `tokens` tokens."""
    return [
        *((clients.respond, body) for body in requests.responses(model, count // 2, tokens, seed)),
        *((clients.chat, body) for body in requests.chats(model, count - count // 2, tokens, seed)),
    ]


async def in_peace(company: Company, asked: Sequence[Ask]) -> dict[int, Receipt]:
    """Every request answered once, without faults."""
    receipts: dict[int, Receipt] = {}
    places = trio.CapacityLimiter(_PEACE_CLIENTS)

    async def one(index: int) -> None:
        answer, body = asked[index]
        async with places:
            receipts[index] = await answer(company.host, company.port, body, index)

    async with trio.open_nursery() as nursery:
        for index in range(len(asked)):
            nursery.start_soon(one, index)
    broken = [receipt for receipt in receipts.values() if receipt.error]
    if broken:
        raise click.ClickException(f"a request failed without any fault: {broken[0].error}")
    return receipts


async def under_fire(
    company: Company, asked: Sequence[Ask], streams: int, fire: Callable[[], Awaitable[None]]
) -> list[Receipt]:
    """`streams` clients ask in turn until `fire` is over; what they have begun is finished."""
    receipts: list[Receipt] = []
    over = False

    async def one(first: int) -> None:
        index = first
        while not over:
            answer, body = asked[index % len(asked)]
            receipts.append(await answer(company.host, company.port, body, index % len(asked)))
            index += streams + 1

    async with trio.open_nursery() as nursery:
        for first in range(streams):
            nursery.start_soon(one, first)
        await fire()
        over = True
    return receipts


def verdicts(receipts: Sequence[Receipt], peace: Mapping[int, Receipt]) -> list[Verdict]:
    """Everything in which answers under fire differ from those in peace."""
    return [verdict for receipt in receipts for verdict in checker.check(receipt, peace[receipt.index])]
