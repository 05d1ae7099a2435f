"""The ledger slots of one frontend from its claim to the moment at which they are given back.

    claim ─► in use by the engine ─leave─► LEAVING ─finish committed─► LINGERING ─► free
                                              ▲                           ▲
    a dead incarnation's ─► ORPHAN ─time out──┴──finish committed─────────┘

A slot may be freed only when its finish is committed, because until then a late scheduler may write to it.
A response that can be resumed lingers for a moment after its end: its client may not have read all of it
when this process dies. Orphans are what a dead incarnation of this frontend left open: their clients have
some time to come back, here or at another frontend, which then notes in the ledger that they follow.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import trio

from protocols.errors import UserError, overloaded
from protocols.request import Finish
from runtime.ledger import Ledger, StaleRequest

REAP_EVERY = 0.02
"""Seconds between looks at slots that wait for their finish."""
LOOK_EVERY = 0.25
"""Seconds between looks at slots that only wait for time to pass."""
ABORT_AGAIN = 0.5
"""Seconds after which an abort that had no effect is sent again (its reader may have died with it)."""
GIVE_UP = 10.0
"""Seconds after which a slot is freed though nobody committed its finish: nobody below ever saw it."""


@dataclasses.dataclass
class _Leaving:
    """A slot that waits for its finish: since when, when its abort was last sent, and how long it lingers
    after its finish (seconds)."""

    since: float
    sent: float
    linger: float


class LedgerSlots:
    """What frontend `index` holds of the ledger. abort: sends an Abort down; whether there was room.
    orphan_seconds: how long orphans wait for their clients. draining: nothing new is let in."""

    def __init__(
        self, index: int, ledger: Ledger, abort: Callable[[int], bool], orphan_seconds: float
    ) -> None:
        self._index = index
        self._ledger = ledger
        self._abort = abort
        self._orphan_seconds = orphan_seconds
        self._orphans: dict[int, float] = {}
        self._leaving: dict[int, _Leaving] = {}
        self._lingering: dict[int, float] = {}
        self._unsettled: dict[int, Callable[[], None]] = {}
        self._news = trio.Event()
        self.draining = False

    @property
    def capacity(self) -> int:
        """Choices that this frontend can have open at once."""
        slots, origins = self._ledger.layout.slots, self._ledger.origins
        return slots * (self._index + 1) // origins - slots * self._index // origins

    def claim(self, count: int) -> tuple[int, ...]:
        """Open slots: their request ids. Raises UserError: 400 for more than there are, 503 when there are
        not so many now, though what lingers has given way."""
        if self.draining:
            raise overloaded("The server is draining: it takes no new requests.")
        if count > self.capacity:
            raise UserError(f"A request may have at most {self.capacity} choices, not {count}.", param="n")
        rids: list[int] = []
        while len(rids) < count:
            rid = self._ledger.claim(self._index)
            if rid is not None:
                rids.append(rid)
            elif self._lingering:
                self.free(next(iter(self._lingering)))
            else:
                for claimed in rids:
                    self._ledger.free(claimed)
                raise overloaded("The server has no room for another request.")
        return tuple(rids)

    def left_behind(self) -> list[int]:
        """Slots that an earlier incarnation left open; those that linger come first, by when they ended."""
        rids = self._ledger.open_rids(lingering=True)
        mine = [rid for rid in rids if self._ledger.origin(rid) == self._index]
        return sorted(mine, key=lambda rid: self._ledger.lingers(rid) or math.inf)

    def adopt(self, rid: int, *, forever: bool = False, settle: Callable[[], None] | None = None) -> None:
        """Keep what was left behind until a client comes back, or `forever` wait for its end. What had
        ended before lingers from then on, however many incarnations that were: slots must not pile up.
        settle: to be called at the end, when nothing more can come."""
        if settle is not None:
            self._unsettled[rid] = settle
        if self._finished(rid):
            self._settle(rid)
            ended = self._ledger.lingers(rid) / 10 or time.monotonic()
            self._linger(rid, ended + self._orphan_seconds - time.monotonic(), ended)
        else:
            self._orphans[rid] = math.inf if forever else time.monotonic()
        self._wake()

    def leave(self, rid: int, *, aborted: bool, linger: float = 0.0) -> None:
        """The engine is done with a choice: end it, or wait for the end that the scheduler commits. What
        another frontend claimed is only ended; its slot is not ours to free."""
        if not self._mine(rid):
            if aborted:
                self._abort(rid)
            return
        self._orphans.pop(rid, None)
        if self._finished(rid):
            self._end(rid, linger)
            return
        now = trio.current_time()
        self._leaving[rid] = _Leaving(now, now, linger)
        if aborted and not self._abort(rid):
            self._leaving[rid].sent -= ABORT_AGAIN
        self._wake()

    def free(self, rid: int) -> None:
        """Give a slot back, if it is ours and open."""
        for held in (self._orphans, self._leaving, self._lingering):
            held.pop(rid, None)
        self._settle(rid)
        if self._mine(rid):
            self._ledger.free(rid)

    def refused(self, rid: int) -> None:
        """Free the slot of an aborted choice that was refused, and so never ran."""
        if rid in self._leaving:
            self.free(rid)

    def forget(self, rid: int) -> None:
        """Let go of a finished response, which is not to be found any more."""
        if rid in self._lingering:
            self.free(rid)

    async def reap(self) -> None:
        """Free slots, for ever."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            while self._leaving or self._lingering or self._orphans:
                self.look(trio.current_time())
                with trio.move_on_after(REAP_EVERY if self._leaving else LOOK_EVERY):
                    await self._news.wait()
                    self._news = trio.Event()

    def look(self, now: float) -> None:
        """Take in what has ended or waited long enough by `now` (Trio's clock)."""
        for rid, leaving in list(self._leaving.items()):
            if self._finished(rid):
                self._end(rid, leaving.linger)
            elif now - leaving.since > GIVE_UP:
                self.free(rid)
            elif now - leaving.sent > ABORT_AGAIN and self._abort(rid):
                leaving.sent = now
        for rid in [rid for rid, until in self._lingering.items() if now >= until]:
            self.free(rid)
        for rid, since in list(self._orphans.items()):
            if self._finished(rid):
                self._end(rid, self._orphan_seconds)
            elif self._is_lost(rid, since):
                self.leave(rid, aborted=True)

    def _is_lost(self, rid: int, since: float) -> bool:
        """Whether no client has followed an orphan for so long, here or anywhere."""
        last = max(since, self._ledger.followed(rid) / 10)
        return time.monotonic() - last > self._orphan_seconds

    def _end(self, rid: int, linger: float) -> None:
        self._leaving.pop(rid, None)
        self._orphans.pop(rid, None)
        self._settle(rid)
        if linger > 0:
            self._linger(rid, linger, time.monotonic())
            self._wake()
        else:
            self.free(rid)

    def _settle(self, rid: int) -> None:
        settle = self._unsettled.pop(rid, None)
        if settle is not None:
            settle()

    def _linger(self, rid: int, seconds: float, ended: float) -> None:
        """Keep a slot for `seconds` from now; `ended` is a time of the monotonic clock. `_lingering` is in
        the order of ends, so that the oldest gives way first."""
        if self._mine(rid):
            self._ledger.linger(rid, int(ended * 10))
            self._lingering[rid] = trio.current_time() + seconds

    def _mine(self, rid: int) -> bool:
        try:
            return self._ledger.is_current(rid) and self._ledger.origin(rid) == self._index
        except StaleRequest:
            return False

    def _finished(self, rid: int) -> bool:
        try:
            return self._ledger.finish(rid) is not Finish.NONE
        except StaleRequest:
            return True

    def _wake(self) -> None:
        self._news.set()
