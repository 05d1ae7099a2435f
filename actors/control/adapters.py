"""Loading and unloading LoRA adapters.

Loading has two phases: first every executor reads the adapter and checks that it fits, without changing
anything; then the decision is recorded in the standing and all actors are told, frontends last, so that a
request which names the adapter finds it everywhere. Unloading goes the other way: first no new request can
name the adapter, and it is removed when no request uses it any more.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
import trio

from actors.control.fields import flag, time_for
from actors.control.progress import until_none
from actors.control.ranks import UNDO_SECONDS
from protocols.adapters import Adapter, check_name
from protocols.errors import UserError, VerbError, several
from protocols.orders import AdapterRead, CountUsers, ReadAdapter, SetAdapters, Users
from runtime.admin import Reply, Request, Send
from runtime.keeping import keep_adapter
from runtime.root import ORDER_SECONDS, Root
from runtime.verbs import Verb, text

PATIENCE = 60.0

Table = tuple[Adapter, ...]


async def show(root: Root, request: Request, _more: Send) -> Reply:
    """The adapters that are loaded."""
    adapters = current(root.standing.adapters)
    users = await _users(root, adapters, time_for(request)) if adapters else {}
    rows = [{**_told(each), "requests": users[each.id]} for each in adapters]
    return {"model": root.config.model.name, "slots": root.config.max_loras, "adapters": rows}


async def load(root: Root, request: Request, more: Send) -> Reply:
    """Load an adapter everywhere or nowhere."""
    name, path = text(request, "name"), text(request, "path")
    seconds = time_for(request, PATIENCE)
    _check(name, path, root.config.model.name)
    with root.alone("another change"):
        await _sweep(root)
        before = root.standing.adapters
        old = [each for each in before if each.name == name]
        if old and not flag(request, "replace"):
            raise VerbError("conflict", f"there is an adapter {name!r} already; replace it, or unload it.")
        adapter = Adapter(root.standing.loads + 1, name, path, "", flag(request, "pinned"))
        _check_pinned([each for each in before if each not in old], adapter, root.config.max_loras)
        adapter = await _read_everywhere(root, adapter, seconds)
        root.decide(adapters=(*before, adapter), loads=adapter.id)
        for kind in ("executor", "scheduler", "frontend"):
            await root.insist_all(kind, SetAdapters(root.standing.adapters), seconds)
        sweep = functools.partial(_sweep, root)
        await until_none(sweep, "request", f"through the adapter that {name!r} was", seconds, more)
    return _told(adapter)


async def unload(root: Root, request: Request, more: Send) -> Reply:
    """Unload an adapter that nobody uses, or once nobody does."""
    name = text(request, "name")
    seconds = time_for(request, PATIENCE)
    with root.alone("another change"):
        found = [each for each in root.standing.adapters if each.name == name]
        if not found:
            raise VerbError("not_found", f"there is no adapter {name!r}.")
        rest = tuple(each for each in root.standing.adapters if each.name != name)
        async with _hidden(root, rest):
            draining = flag(request, "drain")

            async def count() -> int:
                return sum((await _users(root, found)).values())

            patience = seconds if draining else 0.0
            if left := await until_none(count, "request", f"through {name!r}", patience, more):
                code, after = ("timeout", f" after {seconds:g} s") if draining else ("conflict", "")
                raise VerbError(code, f"the adapter {name!r} is in use by {several(left, 'request')}{after}.")
            root.decide(adapters=rest)
        await _drop(root, found)
    return {"name": name, "id": found[-1].id}


def current(adapters: Table) -> Table:
    """The adapters that can be named: without those that another one of their name has replaced."""
    return tuple({each.name: each for each in adapters}.values())


def _check(name: str, path: str, model: str) -> None:
    try:
        check_name(name, model)
    except UserError as error:
        raise VerbError("usage", str(error)) from error
    if not pathlib.PurePath(path).is_absolute() or "\0" in path:
        raise VerbError("usage", f"{path!r} is not an absolute path.")


def _check_pinned(others: Sequence[Adapter], adapter: Adapter, slots: int) -> None:
    """Refuse a pinned adapter that would leave no slot to the others."""
    if adapter.pinned and sum(each.pinned for each in others) + 1 >= slots:
        raise VerbError(
            "conflict", f"{slots} slots (--max-loras) leave none to other adapters if this one is pinned too."
        )


async def _read_everywhere(root: Root, adapter: Adapter, seconds: float) -> Adapter:
    """Hold the adapter's files and have every executor read them; returns the adapter with its digest.
    VerbError where one refuses."""
    with contextlib.suppress(VerbError):  # what cannot be held the executors refuse, and say why
        adapter = await trio.to_thread.run_sync(
            keep_adapter, root.holdings, adapter, root.config.keep_weights
        )
    try:
        answers = await root.insist_all("executor", ReadAdapter(adapter), seconds)
        digests = {answer.digest for answer in answers.values() if isinstance(answer, AdapterRead)}
        if len(digests) != 1:
            raise VerbError("failed", "the executors have read different files.")
        return msgspec.structs.replace(adapter, digest=digests.pop())
    except BaseException:
        _let_go(root, [adapter])
        with trio.CancelScope(shield=True), contextlib.suppress(VerbError):
            await root.insist_all("executor", SetAdapters(root.standing.adapters), min(seconds, UNDO_SECONDS))
        raise


async def _users(root: Root, adapters: Sequence[Adapter], seconds: float = ORDER_SECONDS) -> dict[int, int]:
    """Requests that go through each adapter, by its id: those on their way are counted by their frontend,
    those whose frontend died by their scheduler; others by both, once is enough."""
    counts = dict.fromkeys((each.id for each in adapters), 0)
    for kind in ("frontend", "scheduler"):
        found = dict.fromkeys(counts, 0)
        for answer in (await root.insist_all(kind, CountUsers(tuple(counts)), seconds)).values():
            assert isinstance(answer, Users)
            for id, count in zip(counts, answer.counts, strict=True):
                found[id] += count
        counts = {id: max(count, found[id]) for id, count in counts.items()}
    return counts


async def _sweep(root: Root) -> int:
    """Unload what was replaced and is used no more; how many requests go through what is left of that."""
    adapters = root.standing.adapters
    replaced = [each for each in adapters if each not in current(adapters)]
    if not replaced:
        return 0
    users = await _users(root, replaced)
    rest = tuple(each for each in adapters if each not in replaced or users[each.id])
    if rest != adapters:
        root.decide(adapters=rest)
        await _drop(root, [each for each in adapters if each not in rest])
    return sum(users.values())


async def _drop(root: Root, gone: Sequence[Adapter]) -> None:
    """Release the files of unloaded adapters, and tell all actors what is left."""
    _let_go(root, gone)
    for kind in ("frontend", "scheduler", "executor"):
        await root.insist_all(kind, SetAdapters(root.standing.adapters))


def _let_go(root: Root, adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        for file in adapter.held:
            root.holdings.drop(file)


def _told(adapter: Adapter) -> Reply:
    """An adapter as verbs show it."""
    facts = msgspec.structs.asdict(adapter)
    del facts["held"]
    return facts


@contextlib.asynccontextmanager
async def _hidden(root: Root, rest: Table) -> AsyncIterator[None]:
    """While only the adapters `rest` can be named; afterwards the others can again, unless it was decided
    that they go."""
    try:
        await root.insist_all("frontend", SetAdapters(rest))
        yield
    except BaseException:
        with trio.CancelScope(shield=True), contextlib.suppress(VerbError):
            await root.insist_all("frontend", SetAdapters(root.standing.adapters))
        raise


VERBS: Mapping[str, Verb] = {"lora.list": show, "lora.load": load, "lora.unload": unload}
"""Every verb of this subject by its name."""
