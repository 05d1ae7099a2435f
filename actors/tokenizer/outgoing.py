"""Mail on its way out, for a sender that must never wait.

While a ring has room, mail goes straight into it. When it is full, what comes is kept here, in order,
and a task of its own waits for room. Kept rows of text are joined choice by choice, so that a frontend
that reads nothing costs no more memory than the text of its open choices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from protocols.messages import CONTROL, Deltas, Message, TextRow
from runtime.channel import Outbox
from runtime.ledger import Ledger


def joined(earlier: TextRow, later: TextRow) -> TextRow:
    """Two rows of one choice, the later one right behind the earlier one (`adjoins`), as one."""
    listed = bool(earlier.token_ids or earlier.logprobs)
    pieces = _pieces(earlier) + _pieces(later)
    return msgspec.structs.replace(
        later,
        offset=earlier.offset,
        text=earlier.text + later.text,
        usage=later.usage or earlier.usage,
        first_token=earlier.first_token if listed else later.first_token,
        token_ids=earlier.token_ids + later.token_ids,
        logprobs=earlier.logprobs + later.logprobs,
        pieces=pieces if len(pieces) > 1 else (),
    )


def adjoins(earlier: TextRow, later: TextRow) -> bool:
    """Whether `later` begins where `earlier` ends; a replay for another frontend begins anew, and what lists
    the prompt stays apart."""
    if not earlier.tokens and later.tokens and _listed(earlier):
        return False
    if earlier.finish or earlier.offset + len(earlier.text) != later.offset:
        return False
    count, listed = _listed(earlier), _listed(later)
    return not (count and listed) or earlier.first_token + count == later.first_token


def _listed(row: TextRow) -> int:
    """Tokens that a row lists one by one."""
    return max(len(row.token_ids), len(row.logprobs))


def _pieces(row: TextRow) -> tuple[int, ...]:
    return row.pieces or ((len(row.text),) if row.text or _listed(row) else ())


class Backlog:
    """What waits for room in one ring, in order; rows of text joined choice by choice.

    Weights are about bytes: together, of the rows that leave in one message (at least one leaves);
    a row is lengthened up to an eighth of that.
    """

    def __init__(self, together: int) -> None:
        self._together = together
        self._longest = together // 8
        self._items: deque[Message | list[TextRow]] = deque()
        self._last: dict[int, list[TextRow]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def add(self, message: Message) -> None:
        """Keep a message."""
        if not isinstance(message, Deltas):
            self._items.append(message)
            return
        for row in message.rows:
            self._add_row(row)

    def _add_row(self, row: TextRow) -> None:
        cell = self._last.get(row.rid)
        if cell is not None and adjoins(cell[0], row) and _weight(cell[0]) + _weight(row) <= self._longest:
            cell[0] = joined(cell[0], row)
            return
        self._last[row.rid] = cell = [row]
        self._items.append(cell)

    def take(self) -> Message:
        """Remove what goes next: one message, or many rows as one Deltas."""
        rows: list[TextRow] = []
        weight = 0
        while self._items and isinstance(cell := self._items[0], list):
            if rows and weight + _weight(cell[0]) > self._together:
                break
            self._items.popleft()
            if self._last.get(cell[0].rid) is cell:
                del self._last[cell[0].rid]
            rows.append(cell[0])
            weight += _weight(cell[0])
        if rows:
            return Deltas(tuple(rows))
        message = self._items.popleft()
        assert not isinstance(message, list)
        return message


def _weight(row: TextRow) -> int:
    """About how many bytes a row takes on the wire, rather more than less."""
    return 4 * len(row.text) + 8 * len(row.token_ids) + 1024 * len(row.logprobs) + 3 * len(row.pieces) + 64


class Desk:
    """Sends without waiting. ring_bytes: capacity of each ring; moved: called when kept mail has left."""

    def __init__(
        self,
        outbox: Outbox,
        ledger: Ledger,
        nursery: trio.Nursery,
        log: Any,
        ring_bytes: int,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._outbox = outbox
        self._ledger = ledger
        self._nursery = nursery
        self._log = log
        self._together = ring_bytes // 8
        self._moved = moved
        self._backlogs: dict[tuple[str, bool], Backlog] = {}

    @property
    def empty(self) -> bool:
        """Whether everything has left."""
        return not self._backlogs

    def post(self, to: str, message: Message) -> None:
        """Send now, or as soon as there is room."""
        way = to, message.__class__ in CONTROL
        backlog = self._backlogs.get(way)
        if backlog is not None:
            backlog.add(message)
            return
        try:
            self._outbox.send_nowait(to, message)
        except (trio.WouldBlock, ValueError):
            backlog = self._backlogs[way] = Backlog(self._together)
            backlog.add(message)
            self._nursery.start_soon(self._empty, way, backlog)
        else:
            self._sent(to, message)

    async def _empty(self, way: tuple[str, bool], backlog: Backlog) -> None:
        """Send what is kept, and what is added meanwhile, then stop keeping."""
        while backlog:
            message = backlog.take()
            try:
                await self._send(way[0], message)
            except ValueError:
                for part in _parts(message):
                    await self._send_or_lose(way[0], part)
        del self._backlogs[way]
        self._moved()

    async def _send(self, to: str, message: Message) -> None:
        await self._outbox.send(to, message)
        self._sent(to, message)

    async def _send_or_lose(self, to: str, message: Message) -> None:
        """Send a message; one that can never fit its ring is lost, and the frontend notices by the next row's
        offset."""
        try:
            await self._send(to, message)
        except ValueError as error:
            self._log.error("mail_too_large", to=to, kind=type(message).__name__, error=str(error))

    def _sent(self, to: str, message: Message) -> None:
        """Note in the ledger how far the client has been served, by the frontend that it asked."""
        if isinstance(message, Deltas):
            served = [(row.rid, row.tokens) for row in message.rows]
            self._ledger.set_delivered(served, int(to.removeprefix("frontend.")))


def _parts(message: Message) -> list[Message]:
    """The message in parts: of a Deltas, one message for each row."""
    if isinstance(message, Deltas):
        return [Deltas((row,)) for row in message.rows]
    return [message]
