"""Weights from a trainer's group: its first rank, outside of the company, sends; the executors receive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from actors.control import sources
from actors.control.change import Manner, laid_over
from actors.control.fields import LONGEST, number, time_for
from actors.control.ranks import UNDO_SECONDS, gather, granted, to_each, undo_all
from protocols.errors import VerbError
from protocols.orders import Order
from protocols.standing import Memory
from protocols.weights import Group, Join, Leave, Receive
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.verbs import Verb, text

GROUP_SECONDS = 60.0
"""To meet, and for each tensor."""


async def join(root: Root, request: Request, more: Send) -> Reply:
    """Meet a trainer: every executor becomes a rank of its group, from `rank_offset` on."""
    name, address = text(request, "group"), text(request, "address")
    seconds = number(request, "timeout", GROUP_SECONDS, most=LONGEST)
    port, size = (int(number(request, key, 0, least=1, most=65535)) for key in ("port", "world_size"))
    first = int(number(request, "rank_offset", 1, least=1, most=65535))
    backend = str(request.get("backend") or "")
    executors = root.actors("executor")
    if first + len(executors) > size:
        raise VerbError(
            "usage", f"{len(executors)} ranks from {first} on are not below {size}, the world's size."
        )
    with root.alone("a change of weights"):
        orders: dict[str, Order] = {
            executor: Join(Group(name, address, port, first + i, size, backend), seconds)
            for i, executor in enumerate(executors)
        }
        answers = await gather(root.order, orders, 2 * seconds + UNDO_SECONDS)
        try:
            granted(answers)
        except VerbError:
            joined = [each for each, answer in answers.items() if not isinstance(answer, VerbError)]
            await gather(root.order, dict.fromkeys(joined, Leave(name)), UNDO_SECONDS)
            raise
        root.doubtful.discard(name)
    return {"group": name, "ranks": [first + i for i in range(len(executors))], "world_size": size}


async def leave(root: Root, request: Request, more: Send) -> Reply:
    """Leave a group."""
    name = text(request, "group")
    with root.alone("a change of weights"):
        orders = dict.fromkeys(root.actors("executor"), Leave(name))
        answers = await gather(root.order, orders, time_for(request))
        root.doubtful.discard(name)
    if all(isinstance(each, VerbError) and each.code == "not_found" for each in answers.values()):
        raise VerbError("not_found", f"there is no group {name!r}.")
    return {"group": name}


async def receive(root: Root, request: Request, more: Send) -> Reply:
    """Serve the tensors that a trainer sends to its group, in their order."""
    name = text(request, "group")
    with _in_doubt_unless_taken(root, name) as taken:
        manner = Manner.of(request)
        seconds = number(request, "receive_timeout", GROUP_SECONDS, most=LONGEST)
        shapes = sources.shapes(request)
        with root.alone("a change of weights"):
            _refuse(root, name)
            blob = root.holdings.blob("weights")
            executors = root.actors("executor")
            orders: dict[str, Order] = {
                executor: Receive(name, shapes, "" if i else blob.path, seconds)
                for i, executor in enumerate(executors)
            }
            try:
                await to_each(root, orders, seconds * (len(shapes) + 1))
            except VerbError:
                root.holdings.drop(blob)
                await undo_all(root, Leave(name), seconds)
                raise
            finally:
                taken.append(name)
            source = sources.from_blob(root, root.holdings.seal(blob), f"the group {name}", request)
            return await laid_over(root, source, request, manner, more)


@contextlib.contextmanager
def _in_doubt_unless_taken(root: Root, name: str) -> Iterator[list[str]]:
    """Around an update; what is yielded is to hold the group's name once its tensors are taken, or it is
    left. Until then, whatever its trainer has sent lies there still, and would be taken for the next
    one's."""
    taken: list[str] = []
    try:
        yield taken
    except VerbError:
        if name not in taken:
            root.doubtful.add(name)
        raise


def _refuse(root: Root, name: str) -> None:
    """Raises VerbError where nothing can be taken from a group."""
    if Memory.WEIGHTS in root.standing.released:
        raise VerbError("conflict", "the weights are released: resume them first.")
    if name in root.doubtful:
        raise VerbError(
            "conflict",
            f"an update through the group {name!r} was refused, and what was sent for it may lie there still:"
            " destroy the group and make it again.",
        )


VERBS: Mapping[str, Verb] = {"weights.join": join, "weights.leave": leave, "weights.receive": receive}
