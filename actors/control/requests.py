"""The open requests: which there are, and ending them."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Mapping
from typing import Any

from actors.control.fields import flag, time_for
from protocols.errors import VerbError
from protocols.orders import Ended, EndRequests, Inquire, Inquired, Open
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.verbs import Verb

_ID = re.compile(r"(?:resp_)?([0-9a-f]{1,16})(?:_[0-9a-f]{32})?")
_CALL = re.compile(r"(?:[a-z]+[-_])?([0-9a-f]{32})")
"""`req_…`, `chatcmpl-…`, `cmpl-…`, `msg_…`, or a trace id alone."""


async def list_requests(root: Root, request: Request, _more: Send) -> Reply:
    """All open requests, as their schedulers know them."""
    return {"requests": await _all(root, request)}


async def get(root: Root, request: Request, _more: Send) -> Reply:
    """One of them."""
    (text, rids), *_ = (await _named(root, request)).items()
    for each in await _all(root, request):
        if int(each["id"], 16) in rids:
            return each
    raise VerbError("not_found", f"no request {text} is open.")


async def abort(root: Root, request: Request, _more: Send) -> Reply:
    """End requests with the tokens they have; their clients are told."""
    everything = flag(request, "all")
    named = {} if everything else await _named(root, request)
    rids = tuple(itertools.chain(*named.values()))
    ended: set[int] = set()
    if everything or rids:
        answers = await root.insist_all("scheduler", EndRequests(rids), time_for(request))
        ended.update(*(answer.rids for answer in answers.values() if isinstance(answer, Ended)))
    missing = [text for text, those in named.items() if ended.isdisjoint(those)]
    if missing and not ended:
        raise VerbError("not_found", f"no request {', '.join(missing)} is open.")
    return {"aborted": [f"{rid:x}" for rid in sorted(ended)], "not_found": missing}


async def _all(root: Root, request: Request) -> list[dict[str, Any]]:
    answers = await root.insist_all("scheduler", Inquire(), time_for(request))
    return [
        _described(name, each)
        for name, answer in sorted(answers.items())
        if isinstance(answer, Inquired)
        for each in answer.requests
    ]


def _described(scheduler: str, each: Open) -> dict[str, Any]:
    return {
        "id": f"{each.rid:x}",
        "trace_id": each.trace_id,
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


async def _named(root: Root, request: Request) -> dict[str, tuple[int, ...]]:
    """The ids that the request names, each with the choices that go by it.

    An id is one of `request list` or of a response, or that of a call or a trace, which may have several
    choices, or none that is open. Raises VerbError.
    """
    value = request.get("ids")
    texts = value if isinstance(value, list) else [value]
    named: dict[str, tuple[int, ...]] = {}
    traced: dict[str, str] = {}
    for text in texts:
        if isinstance(text, str) and (match := _ID.fullmatch(text)):
            named[text] = (int(match[1], 16),)
        elif isinstance(text, str) and (match := _CALL.fullmatch(text)):
            traced[text] = match[1]
        else:
            raise VerbError(
                "usage", "this verb needs ids of requests, as answers or `request list` show them."
            )
    there = await _all(root, request) if traced else []
    for text, trace_id in traced.items():
        named[text] = tuple(int(each["id"], 16) for each in there if each["trace_id"] == trace_id)
    if not named:
        raise VerbError("usage", "this verb needs ids of requests, as answers or `request list` show them.")
    return named


VERBS: Mapping[str, Verb] = {
    "request.list": list_requests,
    "request.get": get,
    "request.abort": abort,
}
