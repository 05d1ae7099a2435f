"""The actors' trace records as their tapes hold them, and which requests are traced."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import trio

from actors.control.fields import number
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.verbs import Verb

RECORD_EVERY = 0.1
"""Seconds between two looks at the tapes of a company that is recorded."""
LONGEST_RECORDING = 600.0


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
    """Send what was written behind the positions, and move these on."""
    for name, box in root.sight.boxes.items():
        begin, data = box.trace.read(positions.get(name, 0))
        if data:
            lost = begin - positions.get(name, 0)
            await more({"actor": name, "records": data, "lost_bytes": lost})
        positions[name] = begin + len(data)


def _clocks() -> dict[str, Any]:
    """The present moment by the monotonic clock of the records, and by the wall clock."""
    return {"monotonic_ns": time.monotonic_ns(), "time_ns": time.time_ns()}


async def sample(root: Root, request: Request, _more: Send) -> Reply:
    """Trace this `share` of the requests that begin from now on."""
    share = number(request, "share", 0.0, most=1.0)
    root.sight.sample(share)
    return {"share": share}


VERBS: Mapping[str, Verb] = {"trace.read": read_trace, "trace.record": record, "trace.sample": sample}
