"""The running sequences: their slots, how far each is planned, and the plans in flight.

What the hot path needs of every sequence in every step lies in NumPy arrays by slot, so that a pure
decode step costs a few array operations and touches only sequences to which something happens. Positions:

    0 .. cached .. landed .. planned .. limit
         ▲         ▲         ▲          ▲
         │         │         │          the last position whose KV is needed: it samples the last token
         │         │         KV of positions below is computed or in the air
         │         KV of positions below is computed
         found in the prefix cache

Only with guesses to verify (`speculation`) is it uncertain how far a decode gets. `planned` counts none of
them before they have landed: it is where the next row begins, or before that.

A slot and its pages are given back in one place, `_vacate`, when the last flight over the slot has landed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from actors.scheduler.adapters import AdapterSlots
from actors.scheduler.cache import KvCache
from actors.scheduler.estimate import CLIP
from actors.scheduler.sequence import RUNS, Sequence, Stage
from actors.scheduler.sharing import Upcoming
from protocols.plan import PageGrant

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Flight:
    """A plan in the air. rows: slots that have a row in it; decodes: those that decode, `rounds` times.
    fills: its chunks, as (sequence, end)."""

    step: int
    rows: Mask
    decodes: Mask
    fills: tuple[tuple[Sequence, int], ...]
    rounds: int = 1


class Running:
    """`slots` rows of device state and the sequences on them. requeue: where retracted ones go. adapters:
    those that the sequences use."""

    def __init__(
        self, cache: KvCache, slots: int, requeue: Callable[[Sequence], None], adapters: AdapterSlots
    ) -> None:
        self.cache = cache
        self.adapters = adapters
        self.prefilling: dict[Sequence, None] = {}
        self.upcoming = Upcoming(cache.page_size)
        self.decoding: Mask = np.zeros(slots, np.bool_)
        self.draftable: Mask = np.zeros(slots, np.bool_)
        self.watched: Mask = np.zeros(slots, np.bool_)
        self.landed = np.zeros(slots, np.int64)
        self.planned = np.zeros(slots, np.int64)
        self.capacity = np.zeros(slots, np.int64)
        self.limit = np.zeros(slots, np.int64)
        self.filled = np.zeros(slots, np.int64)
        self.airborne = np.zeros(slots, np.int64)
        self._distrusted: Mask = np.zeros(slots, np.bool_)
        self.by_slot: list[Sequence | None] = [None] * slots
        self._free = list(range(slots - 1, -1, -1))
        self._leaving: dict[Sequence, None] = {}
        self._closes: list[int] = []
        self._requeue = requeue

    def __len__(self) -> int:
        """Slots in use, also by sequences that only wait for their flights to land."""
        return len(self.by_slot) - len(self._free)

    def __getitem__(self, slot: int) -> Sequence:
        sequence = self.by_slot[slot]
        assert sequence is not None, f"slot {slot} is closed"
        return sequence

    @property
    def room(self) -> int:
        """Slots free."""
        return len(self._free)

    def sequences(self) -> Iterator[Sequence]:
        """Everybody on a slot."""
        return (sequence for sequence in self.by_slot if sequence is not None)

    def runners(self) -> list[Sequence]:
        """Those that are planned further."""
        return [sequence for sequence in self.sequences() if sequence.stage in RUNS]

    def in_the_air(self, sequence: Sequence) -> bool:
        """Whether a flight over its slot has not landed."""
        return bool(self.airborne[sequence.slot])

    def expected(self) -> int:
        """Output tokens that may still come from everybody on a slot, each clipped to CLIP."""
        ahead = self.limit - np.maximum(self.planned, self.filled)
        return int(np.clip(ahead, 0, CLIP).sum())

    def coming(self) -> int:
        """Pages of sequences that will give them back as soon as their flights have landed."""
        leaves = (s for s in self.sequences() if s.stage not in RUNS)
        return sum(len(sequence.pages) - sequence.shared for sequence in leaves)

    def open(self, sequence: Sequence) -> int:
        """Give `sequence`, whose pages are attached, a slot. Returns the tokens that were cached."""
        slot = self._free.pop()
        cached = sequence.shared * self.cache.page_size
        self.by_slot[slot] = sequence
        sequence.slot = slot
        self.landed[slot] = self.planned[slot] = cached
        self.draftable[slot] = sequence.sampling.draftable
        self.watched[slot] = not sequence.whole
        self._distrusted[slot] = False
        self.filled[slot] = len(sequence.fill) // 4
        self.capacity[slot] = len(sequence.pages) * self.cache.page_size
        self.limit[slot] = sequence.prompt_len + max(sequence.allowance, 1) - 1
        sequence.prompt_logprobs, sequence.pooled = [], b""
        self.adapters.take(sequence.adapter)
        sequence.move(Stage.PREFILL)
        self.prefilling[sequence] = None
        self.upcoming.add(sequence)
        return cached

    def advance(self, sequence: Sequence, tokens: int) -> bool:
        """A chunk of `tokens` is planned. Returns whether it reaches the end of what is known."""
        slot = sequence.slot
        self.planned[slot] += tokens
        if self.planned[slot] < self.filled[slot]:
            return False
        del self.prefilling[sequence]
        if self.planned[slot] == self.limit[slot]:
            sequence.move(Stage.LAST)
        else:
            sequence.move(Stage.DECODE)
            self.decoding[slot] = True
        return True

    def grow(self, sequence: Sequence, pages: int = 1) -> bool:
        """Pages for the next positions of `sequence`; False, and nothing changes, when there are too few."""
        if not self.cache.grow(sequence, pages):
            return False
        self.capacity[sequence.slot] += pages * self.cache.page_size
        return True

    def grow_each(self, sequences: Items[Sequence]) -> list[PageGrant]:
        """One more page for each of `sequences`; the caller has made sure that there are as many."""
        grants = []
        for sequence, page in zip(sequences, self.cache.take(len(sequences)), strict=True):
            pages = sequence.pages
            grants.append(PageGrant(sequence.slot, len(pages), page.to_bytes(4, "little")))
            pages.append(page)
        self.capacity[[grant.slot for grant in grants]] += self.cache.page_size
        return grants

    def decode(self, rows: Mask, rounds: int) -> None:
        """So many decodes of each slot in `rows` are planned; a sequence that reached its limit is not
        planned again."""
        self.planned += rounds * rows
        for slot in np.flatnonzero(rows & (self.planned == self.limit)).tolist():
            self[slot].move(Stage.LAST)
            self.decoding[slot] = False

    def launch(self, rows: Mask) -> None:
        """A flight over `rows` leaves."""
        self.airborne += rows

    def land(self, flight: Flight, tokens: npt.NDArray[np.int64]) -> None:
        """`flight` has landed, with so many tokens for each slot. A decode has run what came before each."""
        self.airborne -= flight.rows
        for sequence, end in flight.fills:
            self.landed[sequence.slot] = end
        self.landed += np.where(flight.decodes, tokens, 0)
        np.maximum(self.planned, self.landed, out=self.planned)

    def settle(self, flight: Flight) -> None:
        """After the tokens of `flight` were taken in: share the pages that it filled, and let go of the
        sequences that waited for it."""
        for sequence, end in flight.fills:
            if sequence.stage in RUNS or sequence.stage is Stage.LAST:
                self.cache.publish(sequence, end)
                if 4 * end == len(sequence.fill):
                    self.upcoming.remove(sequence)
        for sequence in [s for s in self._leaving if not self.in_the_air(s)]:
            del self._leaving[sequence]
            self._vacate(sequence)

    def leave(self, sequence: Sequence, stage: Stage) -> None:
        """`sequence` is ENDED or RETRACTED: it gives everything back, now or when its flights have landed."""
        self.prefilling.pop(sequence, None)
        self.upcoming.remove(sequence)
        self.decoding[sequence.slot] = False
        sequence.move(stage)
        if self.in_the_air(sequence):
            self._leaving[sequence] = None
        else:
            self._leaving.pop(sequence, None)
            self._vacate(sequence)

    def distrust(self, sequence: Sequence) -> None:
        """The KV of `sequence` is not to be cached when it leaves."""
        self._distrusted[sequence.slot] = True

    def take_closes(self) -> tuple[int, ...]:
        """Slots vacated since the last call, for the next plan."""
        closes, self._closes = tuple(self._closes), []
        return closes

    def _vacate(self, sequence: Sequence) -> None:
        """The KV that lies in the pages is that of all tokens that landed; of them only the known ones count
        (a wasted row's token is not known). The last token sampled has no KV unless a wasted row ran it."""
        slot = sequence.slot
        computed = 0 if self._distrusted[slot] else min(int(self.landed[slot]), sequence.length)
        self.cache.detach(sequence, sequence.known()[: 4 * computed])
        self.by_slot[slot] = None
        self.limit[slot] = self.filled[slot] = self.planned[slot] = self.landed[slot] = 0
        self._free.append(slot)
        self.adapters.give(sequence.adapter)
        self._closes.append(slot)
        sequence.slot, sequence.fill = -1, b""
        if sequence.stage is Stage.RETRACTED:
            sequence.move(Stage.WAITING)
            self._requeue(sequence)
        else:
            sequence.move(Stage.GONE)
