"""Changing the weights that serve: from a checkpoint, a trainer's memory or its group, and back again.

A change has two phases. First every executor makes it ready beside what serves, and says what it
found; nothing has changed yet, and whatever is wrong ends the change there. Then generation comes to
rest, the decision is recorded in the standing, and everybody is told: executors compute with the new weights,
schedulers forget all KV of the old ones. Whoever dies before the decision finds the old weights, and after
it the new ones; as nothing is computed in between, no answer is ever made by a mixture.
"""

from __future__ import annotations

import contextlib
import enum
import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import trio

from actors.control import sources
from actors.control.fields import choice, flag, label, number
from protocols.board import Column
from protocols.errors import VerbError
from protocols.orders import Answer, Continue, Know, Order, Pause, PauseMode, Renew
from protocols.weights import (
    Commit,
    Discard,
    Examine,
    Group,
    Join,
    Leave,
    Peek,
    Peeked,
    Receive,
    Source,
    Stage,
    Staged,
    Survey,
    Surveyed,
    Weights,
)
from runtime.admin import Reply, Request, Send
from runtime.orders import Gone
from runtime.root import Root
from runtime.verbs import Verb, text

A = TypeVar("A")

Give = Callable[[str, Order, float], Awaitable[Answer]]
"""Gives an actor an order, as `Root.order`."""

PATIENCE = 600.0
"""Seconds that each phase of a change may take, unless its administrator says otherwise."""
GROUP_SECONDS = 60.0
LONGEST = 86400.0
LABELS = 256
"""Versions whose names are remembered; of an answer that is older, the serial is told."""
MOST_NUMBERS = 10_000
_LOOK = 0.02
_TELL = 0.2


class Mode(enum.StrEnum):
    """What becomes of the requests that run. KEEP: they go on with the tokens they have, under the new
    weights. WAIT: they end first. ABORT: they end at once, as they are."""

    KEEP = "keep"
    WAIT = "wait"
    ABORT = "abort"


_PAUSES = {Mode.KEEP: PauseMode.RETRACT, Mode.WAIT: PauseMode.WAIT, Mode.ABORT: PauseMode.ABORT}


@dataclass(frozen=True)
class Manner:
    """How a change is made. seconds: that each phase may take."""

    mode: Mode
    seconds: float
    dry_run: bool

    @classmethod
    def of(cls, request: Request) -> Manner:
        """As an administrator asks for it."""
        mode = Mode.ABORT if flag(request, "abort") else choice(request, "mode", Mode, Mode.KEEP)
        return cls(mode, number(request, "timeout", PATIENCE, most=LONGEST), flag(request, "dry_run"))


# Verbs.


async def info(root: Root, request: Request, more: Send) -> Reply:
    """Which weights serve; with `verify`, as every executor reads them in its memory."""
    weights, before = root.standing.weights, root.standing.before
    reply: Reply = {
        "version": weights.version,
        "serial": weights.serial,
        "checksum": weights.checksum,
        "sources": [root.config.model.path, *(source.title for source in weights.sources)],
        "before": before.version if before is not None else None,
    }
    if not flag(request, "verify"):
        return reply
    with root.alone("a change of weights"):
        answers = await _all(root, Survey(), Surveyed, PATIENCE, more)
    found = {name: answer.checksum for name, answer in answers.items()}
    agreed = len(set(found.values())) == 1 and weights.checksum in ("", *found.values())
    if not agreed or {answer.serial for answer in answers.values()} != {weights.serial}:
        raise VerbError("failed", f"the executors do not have what was decided: {found}.")
    tensors = next(iter(answers.values())).tensors
    return {**reply, "checksum": next(iter(found.values())), "verified": sorted(found), "tensors": tensors}


async def get(root: Root, request: Request, _more: Send) -> Reply:
    """The first numbers of a tensor, as the first executor computes with it."""
    name = text(request, "name")
    count = int(number(request, "count", 100, most=MOST_NUMBERS))
    answer = await root.order(root.actors("executor")[0], Peek(name, count), PATIENCE)
    assert isinstance(answer, Peeked)
    return {"name": name, "dtype": answer.dtype, "shape": answer.shape, "values": answer.numbers}


async def update(root: Root, request: Request, more: Send) -> Reply:
    """Serve the checkpoint in a directory or file: of all tensors, or of some."""
    path, manner = text(request, "source"), Manner.of(request)
    with root.alone("a change of weights"):
        source = sources.from_disk(root, path)
        return await _laid_over(root, source, request, manner, more)


async def tensors(root: Root, request: Request, more: Send) -> Reply:
    """Serve the tensors of a safetensors file in memory that is shared, of which a copy is kept."""
    path, manner = text(request, "path"), Manner.of(request)
    with root.alone("a change of weights"):
        source = await sources.from_memory(root, path)
        return await _laid_over(root, source, request, manner, more)


async def rollback(root: Root, request: Request, more: Send) -> Reply:
    """Serve again what served before the last change."""
    manner = Manner.of(request)
    with root.alone("a change of weights"):
        before = root.standing.before
        if before is None:
            raise VerbError("conflict", "there are no weights from before: they have not changed.")
        wanted = msgspec.structs.replace(before, serial=root.standing.weights.serial + 1)
        return await _change(root, wanted, manner, more)


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
        try:
            await _each(root, orders, 2 * seconds + GROUP_SECONDS)
        except VerbError:
            await _tell_all(root, Leave(name))
            raise
    return {"group": name, "ranks": [first + i for i in range(len(executors))], "world_size": size}


async def leave(root: Root, request: Request, more: Send) -> Reply:
    """Forget a group."""
    name = text(request, "group")
    with root.alone("a change of weights"):
        await _tell_all(root, Leave(name))
    return {"group": name}


async def receive(root: Root, request: Request, more: Send) -> Reply:
    """Serve the tensors that a trainer sends to its group, in their order."""
    name, manner = text(request, "group"), Manner.of(request)
    seconds = number(request, "receive_timeout", GROUP_SECONDS, most=LONGEST)
    shapes = sources.shapes(request)
    with root.alone("a change of weights"):
        blob = root.holdings.blob("weights")
        executors = root.actors("executor")
        orders: dict[str, Order] = {
            executor: Receive(name, shapes, "" if i else blob.path, seconds)
            for i, executor in enumerate(executors)
        }
        try:
            await _each(root, orders, seconds * (len(shapes) + 1))
        except VerbError:
            root.holdings.drop(blob)
            await _tell_all(root, Leave(name))
            raise
        source = sources.from_blob(root, root.holdings.seal(blob), f"the group {name}")
        return await _laid_over(root, source, request, manner, more)


VERBS: Mapping[str, Verb] = {
    "weights.info": info,
    "weights.get": get,
    "weights.update": update,
    "weights.tensors": tensors,
    "weights.rollback": rollback,
    "weights.join": join,
    "weights.leave": leave,
    "weights.receive": receive,
}


# A change.


async def _laid_over(root: Root, source: Source, request: Request, manner: Manner, more: Send) -> Reply:
    """Serve `source` over what serves."""
    weights, before = root.standing.weights, root.standing.before
    sources_before = (*weights.sources, *(before.sources if before is not None else ()))
    known = [file for each in (source, *sources_before) for file in each.files]
    serial = weights.serial + 1
    version = label(request, "version") or str(serial)
    wanted = Weights(serial, version, (*weights.sources, source))
    try:
        return await _change(root, wanted, manner, more)
    finally:
        sources.release(root, known)


async def _change(root: Root, wanted: Weights, manner: Manner, more: Send) -> Reply:
    begun, paused, processes = trio.current_time(), root.standing.paused, _processes(root)
    try:
        order = Examine(wanted) if manner.dry_run else Stage(wanted)
        staged = await _all(root, order, Staged, manner.seconds, more)
        weights = _agreed(wanted, staged)
        found = next(iter(staged.values())).found
        reply = {
            "version": weights.version,
            "changed": len(found.changed),
            "bytes": found.size,
            "dry_run": manner.dry_run,
        }
        if manner.dry_run:
            return reply
        rested = trio.current_time()
        await _rest(root, manner)
        if _processes(root) != processes:
            raise VerbError("failed", "an executor died before the change was decided: nothing has changed.")
    except VerbError:
        await _tell_all(root, Discard())
        if root.standing.paused is not paused:
            await _go_on(root, paused)
        raise
    await _decide(root, weights, manner.seconds)
    await _go_on(root, paused)
    now = trio.current_time()
    return {
        **reply,
        "serial": weights.serial,
        "checksum": weights.checksum,
        "seconds": round(now - begun, 3),
        "stopped_seconds": round(now - rested, 3),
        "message": f"The weights of version {weights.version} serve.",
    }


def _agreed(wanted: Weights, staged: Mapping[str, Staged]) -> Weights:
    """What is decided on: less the sources of which nothing is left."""
    checksums = {answer.checksum for answer in staged.values()}
    if len(checksums) > 1:
        raise VerbError("failed", f"the executors have not read the same: {sorted(checksums)}.")
    first = next(iter(staged.values()))
    used = tuple(source for source in wanted.sources if source.number in first.found.used)
    return msgspec.structs.replace(wanted, sources=used, checksum=first.checksum, dtype=first.dtype)


async def _rest(root: Root, manner: Manner) -> None:
    """No step is in the air, nobody holds a page, and none follows. Raises VerbError where that takes too
    long."""
    await _pause(root, _PAUSES[manner.mode], manner.seconds)
    if manner.mode is not Mode.WAIT:
        return
    with trio.move_on_after(manner.seconds) as scope:
        while any(root.row(name)[Column.RUNNING] for name in root.actors("scheduler")):
            await trio.sleep(_LOOK)
    if scope.cancelled_caught:
        raise VerbError("timeout", f"requests still run after {manner.seconds:g} s: nothing has changed.")
    await _pause(root, PauseMode.RETRACT, manner.seconds)


async def _pause(root: Root, mode: PauseMode, seconds: float) -> None:
    root.decide(paused=mode)
    await root.insist_all("scheduler", Pause(mode), seconds)


async def _go_on(root: Root, paused: PauseMode | None) -> None:
    """As before the change."""
    if paused is not None:
        await _pause(root, paused, PATIENCE)
        return
    root.decide(paused=None)
    await root.insist_all("scheduler", Continue(), PATIENCE)


async def _decide(root: Root, weights: Weights, seconds: float) -> None:
    """From the first line on the change has happened; the others are only told."""
    standing = root.standing
    labels = dict([*standing.labels.items(), (weights.serial, weights.version)][-LABELS:])
    root.decide(weights=weights, before=standing.weights, labels=labels)
    root.log.info(
        "weights changed", serial=weights.serial, version=weights.version, checksum=weights.checksum
    )
    await root.insist_all("tokenizer", Know(labels), seconds)
    give = functools.partial(_commit, root)
    _granted(await _gather(give, dict.fromkeys(root.actors("executor"), Commit(weights.serial)), seconds))
    await root.insist_all("scheduler", Renew(weights.serial), seconds)


async def _commit(root: Root, name: str, order: Order, seconds: float) -> Answer:
    """Whoever does not commit must not serve: its successor has the new weights."""
    try:
        return await root.insist(name, order, seconds)
    except Gone:
        raise
    except VerbError as error:
        root.log.error("weights not committed", name=name, error=str(error))
        with contextlib.suppress(VerbError):
            root.replace(name, gently=False)
        return await root.insist(name, order, seconds)


# Orders to all executors.


def _processes(root: Root) -> list[int]:
    """Of the executors; 0 where there is none."""
    return [root.row(name)[Column.PID] for name in root.actors("executor")]


async def _each(root: Root, orders: Mapping[str, Order], seconds: float) -> dict[str, Answer]:
    """An order for each actor, at once: their answers. Raises the first refusal, once everybody has
    answered."""
    return _granted(await _gather(root.order, orders, seconds))


async def _gather(give: Give, orders: Mapping[str, Order], seconds: float) -> dict[str, Answer | VerbError]:
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


def _granted(answers: Mapping[str, Answer | VerbError]) -> dict[str, Answer]:
    for answer in answers.values():
        if isinstance(answer, VerbError):
            raise answer
    return {name: answer for name, answer in answers.items() if not isinstance(answer, VerbError)}


async def _all(root: Root, order: Order, kind: type[A], seconds: float, more: Send) -> dict[str, A]:
    """One order for all executors; meanwhile `more` hears how far they are."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, root, more)
        orders = dict.fromkeys(root.actors("executor"), order)
        found = await _gather(root.order, orders, seconds)
        nursery.cancel_scope.cancel()
    return {name: answer for name, answer in _granted(found).items() if isinstance(answer, kind)}


async def _tell_all(root: Root, order: Order) -> None:
    """An order that whoever is not there need not carry out."""
    with contextlib.suppress(VerbError):
        await _each(root, dict.fromkeys(root.actors("executor"), order), GROUP_SECONDS)


async def _tell(root: Root, more: Send) -> None:
    """While something is done, tell what the executors say of it. Who does not listen ends nothing."""
    told = {name: root.said.get(name) for name in root.actors("executor")}
    with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError):
        while True:
            await trio.sleep(_TELL)
            for name, before in told.items():
                if (words := root.said.get(name)) and words != before:
                    told[name] = words
                    await more({"actor": name, "progress": words})
