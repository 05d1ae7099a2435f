"""The adapters that an executor has: all that are loaded, and those of them that lie in slots. No torch.

    loaded (any number, in the host's memory)  ──►  slots (`--max-loras`, what a step can go through)

A sequence that is opened brings its adapter into a slot. Where none is free, the one gives way that no open
sequence uses and that was used least recently; pinned ones only when there is no other. The scheduler opens
no more adapters at once than there are slots, so there always is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from protocols.adapters import UNLOADED, Adapter
from protocols.errors import ErrorBody, UserError, computation_failed
from protocols.plan import SlotOpen

NO_ADAPTER = -1

Ints = npt.NDArray[np.int64]


class Shelf(Protocol):
    """What keeps adapters for a model."""

    def read(self, adapter: Adapter) -> tuple[Any, str]:
        """An adapter's files, ready to be put into a slot, and the digest of its files. UserError
        with a sentence where it cannot be served."""

    def reserve(self, slots: int, adapters: Sequence[Any]) -> None:
        """Any of these will come into any of so many slots."""

    def put(self, slot: int, prepared: Any) -> None:
        """It takes the slot."""

    def clear(self, slot: int) -> None:
        """The slot is empty."""


class AdapterTable:
    """Loaded adapters by id, with `slots` slots for them; `sequences`: slots of sequences."""

    def __init__(self, shelf: Shelf, slots: int, sequences: int) -> None:
        self._shelf = shelf
        self._loaded: dict[int, tuple[Adapter, Any]] = {}
        self._staged: dict[int, tuple[Adapter, Any]] = {}
        self._broken: dict[int, str] = {}
        self._resident: list[int] = [0] * slots
        self._recent: dict[int, None] = dict.fromkeys(range(slots))
        self._rows: Ints = np.full(sequences, NO_ADAPTER, np.int64)
        self._users: Counter[int] = Counter()
        self._refusals: dict[int, ErrorBody] = {}

    def stage(self, adapter: Adapter) -> str:
        """Read an adapter and keep it until the next `set`; the digest of what was read. May be called
        while a step runs. UserError where it cannot be served."""
        prepared, digest = self._shelf.read(adapter)
        self._staged[adapter.id] = adapter, prepared
        return digest

    def set(self, adapters: Iterable[Adapter]) -> dict[int, str]:
        """From now on these are loaded and no others. Those that were not staged are read; returns why, by
        id, where that cannot be done: whoever asks for one of them gets that sentence."""
        wanted = {adapter.id: adapter for adapter in adapters}
        staged, self._staged = self._staged, {}
        self._broken = {}
        for id in self._loaded.keys() - wanted.keys():
            del self._loaded[id]
            if not self._users[id]:
                self._evict(id)
        for id, adapter in wanted.items():
            known = self._loaded.get(id) or staged.get(id)
            try:
                self._loaded[id] = adapter, known[1] if known is not None else self._again(adapter)
            except UserError as error:
                self._broken[id] = str(error)
        prepared = [found for _, found in self._loaded.values()]
        self._shelf.reserve(min(len(self._resident), len(prepared)), prepared)
        for id, (adapter, _) in self._loaded.items():
            if adapter.pinned and id not in self._resident and 0 in self._resident:
                self._bring(id)
        return self._broken

    def reset(self) -> None:
        """No sequence is open."""
        for slot in np.flatnonzero(self._rows >= 0).tolist():
            self.close(slot)
        self._refusals.clear()

    def close(self, slot: int) -> None:
        """The sequence of a slot is gone; harmless where it had no adapter."""
        self._refusals.pop(slot, None)
        place = int(self._rows[slot])
        if place == NO_ADAPTER:
            return
        self._rows[slot] = NO_ADAPTER
        id = self._resident[place]
        self._users[id] -= 1
        if not self._users[id]:
            del self._users[id]
            if id not in self._loaded:
                self._evict(id)

    def open(self, opening: SlotOpen) -> None:
        """A sequence takes a slot, through the adapter that it names, 0 for none."""
        slot, id = opening.slot, opening.adapter
        self.close(slot)
        if not id:
            return
        if id not in self._loaded:
            self._refusals[slot] = computation_failed(self._broken[id]) if id in self._broken else UNLOADED
            return
        place = self._resident.index(id) if id in self._resident else self._bring(id)
        self._recent.pop(place)
        self._recent[place] = None
        self._users[id] += 1
        self._rows[slot] = place

    def rows(self, slots: Ints, lengths: Ints) -> Ints | None:
        """For each row of a step the slot of its adapter or -1: int64 [T]; None where no row has one. slots,
        lengths: the step's sequences, and how many rows each has."""
        if not self._users:
            return None
        places = self._rows[slots]
        return np.repeat(places, lengths) if (places >= 0).any() else None

    def refusal(self, slot: int) -> ErrorBody | None:
        """Why the sequence of a slot cannot be computed."""
        return self._refusals.get(slot)

    @property
    def refuses(self) -> bool:
        """Whether there is a slot with a refusal."""
        return bool(self._refusals)

    def _again(self, adapter: Adapter) -> Any:
        """Read what another incarnation, or another replica, has read before."""
        try:
            prepared, digest = self._shelf.read(adapter)
        except UserError as error:
            raise UserError(f"The adapter '{adapter.name}' cannot be loaded again: {error}") from error
        if digest != adapter.digest:
            raise UserError(f"The files of adapter '{adapter.name}' have changed since it was loaded.")
        return prepared

    def _bring(self, id: int) -> int:
        """Put a loaded adapter into a slot."""
        place = self._free()
        self._resident[place] = id
        self._shelf.put(place, self._loaded[id][1])
        return place

    def _free(self) -> int:
        """A slot that nobody uses, emptied."""
        idle = [place for place in self._recent if not self._users[self._resident[place]]]
        assert idle, "more adapters are open than there are slots"
        place = min(idle, key=self._reluctance)
        self._shelf.clear(place)
        return place

    def _reluctance(self, place: int) -> int:
        """0 for an empty slot, then those whose adapter may give way; among equals the least recent is
        first."""
        id = self._resident[place]
        if not id:
            return 0
        return 2 if id in self._loaded and self._loaded[id][0].pinned else 1

    def _evict(self, id: int) -> None:
        if id in self._resident:
            place = self._resident.index(id)
            self._resident[place] = 0
            self._shelf.clear(place)
