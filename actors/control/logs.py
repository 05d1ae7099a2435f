"""The actors' logs as their tapes hold them, and the level from which on they log."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from actors.control.fields import flag, number
from protocols.errors import VerbError
from runtime.admin import Reply, Request, Send
from runtime.logs import LEVEL_NUMBERS
from runtime.root import Root
from runtime.verbs import Verb, text

LOG_EVERY = 0.2
"""Seconds between two looks at the tapes of logs that are followed."""
QUIET = 5.0
"""Seconds after which a follower of silent logs is told so, that one who has left is noticed."""


async def read_logs(root: Root, request: Request, more: Send) -> Reply:
    """The last `lines` of each actor, or of `actor` alone; with `follow` also those to come, for ever."""
    names = _named(root, request)
    most = int(number(request, "lines", 100.0, most=100_000))
    follows = flag(request, "follow")
    ends: dict[str, int] = {}
    for name in names:
        lines, ends[name] = root.sight.lines(name, 0)
        await more({"actor": name, "lines": lines[max(len(lines) - most, 0) :], "last": name == names[-1]})
    quiet = 0.0
    while follows:
        await trio.sleep(LOG_EVERY)
        quiet += LOG_EVERY
        for name in names:
            lines, ends[name] = root.sight.lines(name, ends[name])
            if lines or quiet >= QUIET:
                quiet = 0.0
                await more({"actor": name, "lines": lines})
    return {}


async def set_level(root: Root, request: Request, _more: Send) -> Reply:
    """From which `level` on `actor` logs, or everybody; "default" is what the options say."""
    level = text(request, "level")
    if level != "default" and level not in LEVEL_NUMBERS:
        raise VerbError("usage", f"level must be one of {', '.join(LEVEL_NUMBERS)} or default.")
    names = _named(root, request)
    for name in names:
        root.sight.level(name, LEVEL_NUMBERS.get(level, 0))
    return {"level": level, "actors": names}


def _named(root: Root, request: Request) -> list[str]:
    """`actor`, or all of them."""
    name = request.get("actor")
    known = list(root.sight.boxes)
    if not name:
        return known
    if name not in known:
        raise VerbError("not_found", f"there is no actor {name!r}; there are {', '.join(known)}.")
    return [str(name)]


VERBS: Mapping[str, Verb] = {"logs.read": read_logs, "logs.level": set_level}
