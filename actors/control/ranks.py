"""Orders to all executors at once."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from actors.control.progress import tell
from protocols.board import Column
from protocols.errors import VerbError
from protocols.orders import Answer, Order
from runtime.admin import Send
from runtime.root import Root

A = TypeVar("A")

Give = Callable[[str, Order, float], Awaitable[Answer]]
"""Gives an actor an order, as `Root.order`."""

UNDO_SECONDS = 5.0
"""To wait until what was begun is undone."""
_TELL = 0.2


def processes(root: Root) -> list[int]:
    """Process ids of the executors; 0 where one is down."""
    return [root.row(name)[Column.PID] for name in root.actors("executor")]


async def to_each(root: Root, orders: Mapping[str, Order], seconds: float) -> dict[str, Answer]:
    """An order for each actor, at once: their answers. Raises the first refusal, once everybody has
    answered."""
    return granted(await gather(root.order, orders, seconds))


async def gather(give: Give, orders: Mapping[str, Order], seconds: float) -> dict[str, Answer | VerbError]:
    """The same, with refusals among the answers."""
    answers: dict[str, Answer | VerbError] = {}

    async def one(name: str, order: Order) -> None:
        try:
            answers[name] = await give(name, order, seconds)
        except VerbError as error:
            answers[name] = error

    async with trio.open_nursery() as nursery:
        for name, order in orders.items():
            nursery.start_soon(one, name, order)
    return answers


def granted(answers: Mapping[str, Answer | VerbError]) -> dict[str, Answer]:
    """The answers, where there is no refusal among them; else raises the first."""
    for answer in answers.values():
        if isinstance(answer, VerbError):
            raise answer
    return {name: answer for name, answer in answers.items() if not isinstance(answer, VerbError)}


async def to_all(
    root: Root, order: Order, kind: type[A], seconds: float, more: Send, give: Give | None = None
) -> dict[str, A]:
    """One order for all executors; meanwhile `more` hears how far they are."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, root, more)
        orders = dict.fromkeys(root.actors("executor"), order)
        found = await gather(give or root.order, orders, seconds)
        nursery.cancel_scope.cancel()
    return {name: answer for name, answer in granted(found).items() if isinstance(answer, kind)}


async def undo_all(root: Root, order: Order, seconds: float) -> None:
    """An order that undoes what was begun: whoever is not there need not carry it out, and whoever takes
    longer than `seconds`, or UNDO_SECONDS, carries it out later."""
    with contextlib.suppress(VerbError):
        orders = dict.fromkeys(root.actors("executor"), order)
        await to_each(root, orders, min(seconds, UNDO_SECONDS))


async def _tell(root: Root, more: Send) -> None:
    """While something is done, report the progress of the executors."""
    told = {name: root.said.get(name) for name in root.actors("executor")}
    while True:
        await trio.sleep(_TELL)
        for name, before in told.items():
            if (words := root.said.get(name)) and words != before:
                told[name] = words
                await tell(more, words, actor=name)
