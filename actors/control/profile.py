"""Profiles of the executors: each records what its steps do into a file of its own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping

from actors.control.fields import flag, number, time_for
from actors.control.ranks import UNDO_SECONDS, gather, granted
from protocols.errors import VerbError
from protocols.orders import Activity, Profiled, StartProfile, StopProfile
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.verbs import Verb

STEPS = 1000
"""Recorded where nobody says how many: whoever forgets a profile fills no memory."""
MOST_STEPS = 100_000


async def start(root: Root, request: Request, _more: Send) -> Reply:
    """Have executors, all or the `actors` named, record their next `steps`. Those that were recorded already
    go on, and the others do not begin."""
    names, activities, seconds = _names(root, request), _activities(request), time_for(request)
    steps = int(number(request, "steps", STEPS, least=1, most=MOST_STEPS))
    stacks, shapes = flag(request, "stacks"), flag(request, "shapes")
    with root.alone("another change"):
        folder = _folder(request, root.config.name)
        files = {name: f"{folder}/{name}.trace.json" for name in names}
        orders = {name: StartProfile(path, steps, activities, stacks, shapes) for name, path in files.items()}
        found = await gather(root.order, orders, seconds)
        try:
            granted(found)
        except VerbError:
            undo = {name: StopProfile(path, keep=False) for name, path in files.items()}
            await gather(root.order, undo, min(seconds, UNDO_SECONDS))
            with contextlib.suppress(OSError):
                os.rmdir(folder)
            raise
        root.decide(profiles={**root.standing.profiles, **files})
    return {"files": files, "steps": steps}


async def stop(root: Root, request: Request, _more: Send) -> Reply:
    """Have them write what they have recorded, unless they have, and tell the files. lost: those without
    one, and why."""
    seconds = time_for(request)
    with root.alone("another change"):
        files = root.standing.profiles
        if not files:
            raise VerbError("conflict", "nothing is being profiled: start that first.")
        orders = {name: StopProfile(path) for name, path in files.items()}
        found = await gather(root.order, orders, seconds)
        root.decide(profiles={})
    told = {name: answer for name, answer in found.items() if isinstance(answer, Profiled)}
    return {
        "files": {name: files[name] for name in told},
        "steps": {name: answer.steps for name, answer in told.items()},
        "bytes": {name: answer.bytes for name, answer in told.items()},
        "lost": {name: str(answer) for name, answer in found.items() if isinstance(answer, VerbError)},
    }


def _names(root: Root, request: Request) -> tuple[str, ...]:
    """The executors that are meant."""
    value, known = request.get("actors"), root.actors("executor")
    if value is None or value == []:
        return known
    if not isinstance(value, list) or not {*map(str, value)} <= {*known}:
        raise VerbError("not_found", f"actors must be some of the executors: {', '.join(known)}.")
    return tuple(name for name in known if name in value)


def _activities(request: Request) -> tuple[Activity, ...]:
    value = request.get("activities")
    if value is None or value == []:
        return tuple(Activity)
    wanted = {str(each).upper() for each in value} if isinstance(value, list) else set[str]()
    if not wanted or not wanted <= {*Activity}:
        raise VerbError("usage", f"activities must be some of {', '.join(Activity)}.")
    return tuple(each for each in Activity if each in wanted)


def _folder(request: Request, name: str) -> str:
    """A new directory that nobody else can read, in the one that is wished for, or among temporary files."""
    parent = request.get("folder")
    if parent is not None and not (isinstance(parent, str) and os.path.isabs(parent)):
        raise VerbError("usage", "a profile goes to an absolute path.")
    try:
        if parent is not None:
            os.makedirs(parent, mode=0o700, exist_ok=True)
        return tempfile.mkdtemp(prefix=f"{name}-profile-", dir=parent)
    except (OSError, ValueError) as error:
        raise VerbError("failed", f"cannot make a directory for the profile: {error}.") from error


VERBS: Mapping[str, Verb] = {"profile.start": start, "profile.stop": stop}
