"""Verbs that look: metrics, what happens, traces, logs. They read memory, and ask no actor."""

from __future__ import annotations

import time
from typing import Any

import trio

from actors.control.fields import flag, number
from actors.control.rates import rates
from protocols.errors import VerbError
from runtime.admin import Reply, Request, Send
from runtime.logs import LEVEL_NUMBERS
from runtime.root import Root
from runtime.verbs import Verb, text

RECORD_EVERY = 0.1
"""Seconds between two looks at the tapes of a company that is recorded."""
LOG_EVERY = 0.2
"""Seconds between two looks at the tapes of logs that are followed."""
QUIET = 5.0
"""Seconds after which a follower of silent logs is told so, that one who has left is noticed."""
LONGEST_RECORDING = 600.0


async def metrics(root: Root, _request: Request, _more: Send) -> Reply:
    """Prometheus's text."""
    return {"text": root.sight.metrics()}


async def watch(root: Root, request: Request, more: Send) -> Reply:
    """The company at each `interval` seconds, with rates, and in between what happens as it happens: the
    notices after number `since`. `looks`: how often, 0 for ever."""
    interval = number(request, "interval", 1.0, least=0.1, most=60.0)
    looks = number(request, "looks", 0.0, most=1e6)
    seen = int(number(request, "since", 0.0, most=2**53))
    before, looked = root.status(), time.monotonic()
    await more({"status": {**before, "actors": rates(before, before, interval)}, **root.tree()})
    done = 0
    while not looks or done < looks:
        deadline = looked + interval
        while (left := deadline - time.monotonic()) > 0:
            seen = await _tell(root, more, seen)
            with trio.move_on_after(left):
                await root.sight.news()
        seen = await _tell(root, more, seen)
        now, at = root.status(), time.monotonic()
        await more({"status": {**now, "actors": rates(before, now, at - looked)}, **root.tree()})
        before, looked, done = now, at, done + 1
    return {}


async def _tell(root: Root, more: Send, seen: int) -> int:
    news = root.sight.since(seen)
    if news:
        await more({"events": news})
    return news[-1]["number"] if news else seen


async def read_trace(root: Root, request: Request, more: Send) -> Reply:
    """What the tapes of all traces still hold, actor by actor; from the positions `since` on."""
    since = request.get("since")
    positions = (
        {key: value for key, value in since.items() if isinstance(value, int)}
        if isinstance(since, dict)
        else {}
    )
    await _send_traces(root, more, positions)
    return {"positions": positions, **_clocks()}


async def record(root: Root, request: Request, more: Send) -> Reply:
    """Trace everything for some `seconds`, and send it meanwhile."""
    seconds = number(request, "seconds", 10.0, least=0.1, most=LONGEST_RECORDING)
    positions = {name: box.trace.end for name, box in root.sight.boxes.items()}
    root.sight.record(1)
    try:
        until = trio.current_time() + seconds
        while (left := until - trio.current_time()) > 0:
            await trio.sleep(min(left, RECORD_EVERY))
            await _send_traces(root, more, positions)
    finally:
        root.sight.record(-1)
    return _clocks()


async def _send_traces(root: Root, more: Send, positions: dict[str, int]) -> None:
    """What was written behind the positions, which move on."""
    for name, box in root.sight.boxes.items():
        begin, data = box.trace.read(positions.get(name, 0))
        if data:
            lost = begin - positions.get(name, 0)
            await more({"actor": name, "records": data, "lost_bytes": lost})
        positions[name] = begin + len(data)


def _clocks() -> dict[str, Any]:
    """The same moment by the clock of the records, and by the wall's."""
    return {"monotonic_ns": time.monotonic_ns(), "time_ns": time.time_ns()}


async def sample(root: Root, request: Request, _more: Send) -> Reply:
    """Trace this `share` of the requests that begin from now on."""
    share = number(request, "share", 0.0, most=1.0)
    root.sight.sample(share)
    return {"share": share}


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


VERBS: dict[str, Verb] = {
    "metrics": metrics,
    "watch": watch,
    "trace.read": read_trace,
    "trace.record": record,
    "trace.sample": sample,
    "logs.read": read_logs,
    "logs.level": set_level,
}
