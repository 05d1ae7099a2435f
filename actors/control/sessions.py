"""Opening, closing and listing sessions, and what frontends ask of them around each request of one."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

import trio

from actors.control.fields import LONGEST, flag, label, number
from protocols.errors import VerbError
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.sessions import MOST_CONTEXT, MOST_TOKENS, Continuation, Node
from runtime.verbs import Verb, text

CAPACITY = 1 << 18
"""Tokens of a session whose opener does not say."""
PATIENCE = 3600.0
"""Seconds for which a session is kept when nobody uses it."""


async def open(root: Root, request: Request, _more: Send) -> Reply:
    """Open a session."""
    capacity = int(number(request, "capacity", CAPACITY, least=1, most=MOST_TOKENS))
    patience = number(request, "timeout", PATIENCE, least=1, most=LONGEST)
    session = root.sessions.open(label(request, "id"), capacity, patience, trio.current_time())
    return {"session_id": session.id, "capacity": session.capacity, "timeout": session.patience}


async def close(root: Root, request: Request, _more: Send) -> Reply:
    """Forget a session and all that it holds."""
    name = text(request, "id")
    root.sessions.close(name, trio.current_time())
    return {"session_id": name}


async def show(root: Root, _request: Request, _more: Send) -> Reply:
    """The sessions that are open."""
    now = trio.current_time()
    return {
        "sessions": [
            {
                "name": each.id,
                "requests": len(each.nodes),
                "tokens": each.tokens,
                "capacity": each.capacity,
                "idle_seconds": round(now - each.used, 1),
                "timeout": each.patience,
                "owner": each.owner or "",
            }
            for each in root.sessions.all(now)
        ]
    }


async def go_on(root: Root, request: Request, _more: Send) -> Reply:
    """What comes before the tokens of a request."""
    how = Continuation(
        text(request, "id"),
        _optional(request, "rid"),
        int(number(request, "offset", 0, least=-MOST_CONTEXT, most=MOST_CONTEXT)),
        flag(request, "bare"),
        flag(request, "replace"),
    )
    room = int(number(request, "room", 0, most=MOST_TOKENS))
    before = root.sessions.go_on(how, _optional(request, "owner"), room, trio.current_time())
    return {"tokens": before}


async def keep(root: Root, request: Request, _more: Send) -> Reply:
    """A request of a session has ended."""
    try:
        added = base64.b64decode(text(request, "added"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise VerbError("usage", "added must be base64.") from error
    if len(added) % 4:
        raise VerbError("usage", "added must be whole int32 values.")
    kept, answer = (int(number(request, key, 0, most=MOST_CONTEXT)) for key in ("kept", "answer"))
    if not kept <= answer <= kept + len(added) // 4:
        raise VerbError("usage", "the answer begins outside of what is added.")
    node = Node(_optional(request, "parent"), kept, added, answer)
    root.sessions.keep(text(request, "id"), text(request, "rid"), node, trio.current_time())
    return {}


def _optional(request: Request, key: str) -> str:
    value = request.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise VerbError("usage", f"{key} must be text.")
    return value


VERBS: Mapping[str, Verb] = {
    "session.open": open,
    "session.close": close,
    "session.list": show,
    "session.go-on": go_on,
    "session.keep": keep,
}
