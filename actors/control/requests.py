"""The open requests: which there are, and ending them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from actors.control.fields import LONGEST, flag, number
from protocols.errors import VerbError
from protocols.orders import Ended, EndRequests, Inquire, Inquired, Open
from runtime.admin import Reply, Request, Send
from runtime.root import ORDER_SECONDS, Root
from runtime.verbs import Verb

_ID = re.compile(r"(?:resp_)?([0-9a-f]{1,16})(?:_[0-9a-f]{32})?")


async def list_requests(root: Root, request: Request, _more: Send) -> Reply:
    """All open requests, as their schedulers know them."""
    return {"requests": await _all(root, request)}


async def get(root: Root, request: Request, _more: Send) -> Reply:
    """One of them."""
    rid = _rids(request)[0]
    for each in await _all(root, request):
        if each["id"] == f"{rid:x}":
            return each
    raise VerbError("not_found", f"no request {rid:x} is open.")


async def abort(root: Root, request: Request, _more: Send) -> Reply:
    """End requests with the tokens they have; their clients are told."""
    everything = flag(request, "all")
    rids = () if everything else _rids(request)
    answers = await root.insist_all("scheduler", EndRequests(rids), _seconds(request))
    ended = [rid for answer in answers.values() if isinstance(answer, Ended) for rid in answer.rids]
    missing = [f"{rid:x}" for rid in rids if rid not in ended]
    if missing and not ended:
        raise VerbError("not_found", f"no request {', '.join(missing)} is open.")
    return {"aborted": [f"{rid:x}" for rid in sorted(ended)], "not_found": missing}


async def _all(root: Root, request: Request) -> list[dict[str, Any]]:
    answers = await root.insist_all("scheduler", Inquire(), _seconds(request))
    return [
        _described(name, each)
        for name, answer in sorted(answers.items())
        if isinstance(answer, Inquired)
        for each in answer.requests
    ]


def _seconds(request: Request) -> float:
    return number(request, "timeout", ORDER_SECONDS, most=LONGEST)


def _described(scheduler: str, each: Open) -> dict[str, Any]:
    return {
        "id": f"{each.rid:x}",
        "scheduler": scheduler,
        "state": "running" if each.running else "waiting",
        "choice": each.choice,
        "prompt_tokens": each.prompt_tokens,
        "cached_tokens": each.cached_tokens,
        "output_tokens": each.output_tokens,
        "max_tokens": each.max_tokens,
        "priority": each.priority,
        "age_seconds": round((time.monotonic_ns() - each.arrived_ns) / 1e9, 3),
    }


def _rids(request: Request) -> tuple[int, ...]:
    """The ids that are named: hexadecimal numbers, or the ids of responses, which hold one."""
    value = request.get("ids")
    texts = value if isinstance(value, list) else [value]
    matches = [_ID.fullmatch(text) if isinstance(text, str) else None for text in texts]
    if not matches or None in matches:
        raise VerbError("usage", "this verb needs ids of requests, as `request list` shows them.")
    return tuple(int(match[1], 16) for match in matches if match is not None)


VERBS: Mapping[str, Verb] = {
    "request.list": list_requests,
    "request.get": get,
    "request.abort": abort,
}
