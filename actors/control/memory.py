"""Giving the executors' memory back to the system, and taking it again.

Schedulers are asked first, and each refuses while anybody needs what is to go. Then the decision is
recorded: an executor that comes back meanwhile gives the same memory back before it serves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from actors.control import pace
from actors.control.fields import time_for
from protocols.errors import VerbError
from protocols.orders import Answer, Held, Release, Restore
from protocols.standing import Memory, PauseMode
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.verbs import Verb

SECONDS = 600.0
"""Time to read weights again, unless the administrator says otherwise."""


async def release(root: Root, request: Request, _more: Send) -> Reply:
    """Give memory back: all of it, or what `tags` names."""
    wanted, seconds = _tags(request), time_for(request, SECONDS)
    with root.alone("another change"):
        released = root.standing.released
        tags = tuple(tag for tag in wanted or tuple(Memory) if tag not in released)
        if not tags or (wanted and len(tags) < len(wanted)):
            raise VerbError("conflict", f"released already: {', '.join(released)}.")
        try:
            await root.insist_all("scheduler", Release(tags), seconds)
        except VerbError:
            await root.insist_all("scheduler", Restore((), released), seconds)
            raise
        everything = tuple(tag for tag in Memory if tag in (*released, *tags))
        root.decide(released=everything)
        await root.insist_all("scheduler", Release(tags), seconds)
        answers = await root.insist_all("executor", Release(tags), seconds)
    return {"released": [tag.value for tag in everything], "bytes": _sizes(answers.values())}


async def restore(root: Root, request: Request, _more: Send) -> Reply:
    """Take memory again: all that was released, or what `tags` names."""
    wanted, seconds = _tags(request), time_for(request, SECONDS)
    with root.alone("another change"):
        released = root.standing.released
        tags = wanted or released
        missing = [tag.value for tag in tags if tag not in released]
        if missing or not tags:
            raise VerbError("conflict", f"not released: {', '.join(missing) or 'nothing is'}.")
        left = tuple(tag for tag in released if tag not in tags)
        answers = await root.insist_all("executor", Restore(tags), seconds)
        root.decide(released=left)
        await root.insist_all("executor", Restore(tags), seconds)
        await root.insist_all("scheduler", Restore(tags, left), seconds)
    return {"released": [tag.value for tag in left], "bytes": _sizes(answers.values())}


async def sleep(root: Root, request: Request, more: Send) -> Reply:
    """Let the running requests end (or as `mode` says), then give all memory back."""
    if root.standing.released:
        raise VerbError("conflict", "memory is released already: take it again first.")
    paused = await pace.pause(root, {"mode": PauseMode.WAIT.value, **request}, more)
    await pace.rest(root, request, more)
    return {**paused, **await release(root, request, more)}


async def wake(root: Root, request: Request, more: Send) -> Reply:
    """Take the memory again, all or some of it, and generate once none is missing."""
    restored = await restore(root, request, more)
    if root.standing.paused is not None and not root.standing.released:
        await pace.resume(root, request, more)
    return restored


def _tags(request: Request) -> tuple[Memory, ...]:
    """Those named, in the order of Memory; none for all."""
    value = request.get("tags")
    if value is None:
        return ()
    if not isinstance(value, list) or not {*map(str, value)} <= {*Memory}:
        raise VerbError("usage", f"tags must be some of {', '.join(Memory)}.")
    return tuple(tag for tag in Memory if tag in value)


def _sizes(answers: Iterable[Answer]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for answer in answers:
        assert isinstance(answer, Held)
        total.update(answer.sizes)
    return dict(total)


VERBS: Mapping[str, Verb] = {
    "memory.release": release,
    "memory.restore": restore,
    "engine.sleep": sleep,
    "engine.wake": wake,
}
