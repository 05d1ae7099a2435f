"""Sessions: conversations of tokens that a company keeps, so that a client need only send what is new.

A session is a tree. Each request in it that has ended is a node: so many tokens of the node that it
continued, then its own input and output. The supervisor keeps them, so no actor's death loses one; the KV of
their tokens lies in the prefix cache like everybody's, and is computed again where it was lost. No I/O, and
no clock.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator

from protocols.errors import VerbError

MOST_SESSIONS = 1024
MOST_TOKENS = 1 << 26
"""Tokens that all open sessions may hold together, 4 bytes each."""
MOST_CONTEXT = 180_000
"""Tokens of a conversation that can still be continued."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A request that has ended. parent: the node that it continued, "" for none, and kept: how many tokens of
    that. added: int32, its own input and, from token `answer` of the whole on, its output."""

    parent: str
    kept: int
    added: bytes
    answer: int

    @property
    def length(self) -> int:
        """Tokens of the whole."""
        return self.kept + len(self.added) // 4


@dataclasses.dataclass
class Session:
    """capacity: tokens that its nodes may have of their own. patience: seconds for which it is kept when
    nobody uses it. owner: whose requests may use it, None until the first. used: when, in seconds."""

    id: str
    capacity: int
    patience: float
    used: float
    owner: str | None = None
    tokens: int = 0
    nodes: dict[str, Node] = dataclasses.field(default_factory=dict)

    def text(self, rid: str, length: int) -> bytes:
        """The first `length` tokens of a node, from its root on."""
        parts: list[bytes] = []
        while length:
            node = self.nodes[rid]
            parts.append(node.added[: max(0, 4 * (length - node.kept))])
            rid, length = node.parent, min(length, node.kept)
        return b"".join(reversed(parts))

    def after(self, rid: str) -> dict[str, int]:
        """What continues a node, with its tokens; all for ""."""
        found, parents = dict[str, int](), {rid}
        for name, node in self.nodes.items():  # parents come before their children
            if node.parent in parents:
                parents.add(name)
                found[name] = len(node.added) // 4
        return found


@dataclasses.dataclass(frozen=True)
class Continuation:
    """How a request goes on in a session. rid: the one that it continues, "" for none. offset: tokens of that
    which count, from its end on where negative, 0 for all. bare: without the output of that. replace: what
    has continued it before is forgotten."""

    id: str
    rid: str = ""
    offset: int = 0
    bare: bool = False
    replace: bool = False


class Sessions:
    """All sessions of a company. `now`: seconds, of any clock that does not jump."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}

    def open(self, id: str, capacity: int, patience: float, now: float) -> Session:
        """A new session, of a name of its own where `id` is "". Raises VerbError."""
        self._expire(now)
        if id in self._open:
            raise VerbError("conflict", f"there is a session {id!r} already.")
        if len(self._open) >= MOST_SESSIONS:
            raise VerbError("conflict", f"{MOST_SESSIONS} sessions are open: close some.")
        left = MOST_TOKENS - sum(session.capacity for session in self._open.values())
        if capacity > left:
            raise VerbError("conflict", f"the open sessions leave room for {left} tokens: close some.")
        session = Session(id or secrets.token_hex(16), capacity, patience, now)
        self._open[session.id] = session
        return session

    def close(self, id: str, now: float) -> None:
        """Forget a session. Raises VerbError."""
        self._expire(now)
        del self._open[self._find(id).id]

    def all(self, now: float) -> Iterator[Session]:
        """Those that are open, in the order of their opening."""
        self._expire(now)
        yield from self._open.values()

    def go_on(self, how: Continuation, owner: str, room: int, now: float) -> bytes:
        """The tokens before those of a request that will add `room` at most. Raises VerbError."""
        self._expire(now)
        session = self._find(how.id)
        if session.owner not in (None, owner):
            raise _nobody(how.id)
        if how.rid and how.rid not in session.nodes:
            raise VerbError(
                "not_found", f"session {how.id!r} has no request {how.rid[:100]!r} that has ended."
            )
        before = _before(session, how)
        if len(before) // 4 + room > MOST_CONTEXT:
            raise VerbError("conflict", f"a conversation of a session has {MOST_CONTEXT} tokens at most.")
        replaced = session.after(how.rid) if how.replace else {}
        held = session.tokens - sum(replaced.values())
        if held + room > session.capacity:
            raise VerbError(
                "conflict",
                f"session {how.id!r} holds {held} of {session.capacity} tokens, and this may add {room}.",
            )
        for rid in replaced:
            del session.nodes[rid]
        session.tokens, session.owner, session.used = held, owner, now
        return before

    def keep(self, id: str, rid: str, node: Node, now: float) -> None:
        """A request of a session has ended. Raises VerbError where the session, or what it continued, is
        gone, or others that ran meanwhile have left no room."""
        session = self._find(id)
        parent = session.nodes.get(node.parent)
        if node.kept > (parent.length if parent is not None else 0):
            raise VerbError("not_found", f"session {id!r} no longer has what request {rid!r} continues.")
        if rid in session.nodes:
            raise VerbError("conflict", f"session {id!r} has a request {rid!r} already.")
        tokens = session.tokens + len(node.added) // 4
        if tokens > session.capacity:
            raise VerbError("conflict", f"session {id!r} has no room left for request {rid!r}.")
        session.nodes[rid] = node
        session.tokens = tokens
        session.used = now

    def _find(self, id: str) -> Session:
        if id not in self._open:
            raise _nobody(id)
        return self._open[id]

    def _expire(self, now: float) -> None:
        for session in [each for each in self._open.values() if now - each.used > each.patience]:
            del self._open[session.id]


def _before(session: Session, how: Continuation) -> bytes:
    if not how.rid:
        return b""
    node = session.nodes[how.rid]
    length = node.answer if how.bare else node.length
    if abs(how.offset) > length:
        raise VerbError("usage", f"offset {how.offset} is beyond the {length} tokens of {how.rid!r}.")
    return session.text(how.rid, how.offset if how.offset > 0 else length + how.offset)


def _nobody(id: str) -> VerbError:
    return VerbError(
        "not_found", f"there is no session {id[:100]!r}: it was not opened, or closed, or timed out."
    )
