"""Which adapters lie in slots: whoever is open has its own, nobody else's is taken, and nothing leaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu.lora.table import AdapterTable
from protocols.adapters import UNLOADED, Adapter
from protocols.errors import UserError
from protocols.plan import SlotOpen
from protocols.sampling import SamplingParams

SLOTS, SEQUENCES = 3, 8


class Shelf:
    """Remembers what lies where; a path is what is read. Paths with an x cannot be."""

    def __init__(self) -> None:
        self.held: dict[int, str] = {}

    def read(self, adapter: Adapter) -> tuple[str, str]:
        if "x" in adapter.path:
            raise UserError(f"no {adapter.path}.")
        return adapter.path, f"digest {adapter.path}"

    def reserve(self, slots: int, adapters: Sequence[Any]) -> None:
        assert len(adapters) >= slots

    def put(self, slot: int, prepared: Any) -> None:
        assert slot not in self.held
        self.held[slot] = prepared

    def clear(self, slot: int) -> None:
        self.held.pop(slot, None)


def opening(slot: int, id: int) -> SlotOpen:
    return SlotOpen(slot, slot, SamplingParams(), 0, 0, 0, adapter=id)


def adapter(id: int, *, pinned: bool = False, name: str = "") -> Adapter:
    return Adapter(id, name or f"a{id}", name or f"a{id}", f"digest {name or f'a{id}'}", pinned)


class Machine(RuleBasedStateMachine):
    """A scheduler that opens no more adapters at once than there are slots."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()
        self.table = AdapterTable(self.shelf, SLOTS, SEQUENCES)
        self.loaded: dict[int, Adapter] = {}
        self.open: dict[int, int] = {}
        self.next = 1

    @rule(pinned=st.booleans(), staged=st.booleans())
    def load(self, pinned: bool, staged: bool) -> None:
        new = adapter(self.next, pinned=pinned)
        self.next += 1
        if staged:
            assert self.table.stage(new) == new.digest
        self.loaded[new.id] = new
        assert not self.table.set(self.loaded.values())

    @precondition(lambda self: set(self.loaded) - set(self.open.values()))
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        idle = sorted(set(self.loaded) - set(self.open.values()))
        del self.loaded[data.draw(st.sampled_from(idle))]
        assert not self.table.set(self.loaded.values())

    @rule(slot=st.integers(0, SEQUENCES - 1), data=st.data())
    def open_one(self, slot: int, data: st.DataObject) -> None:
        self.open.pop(slot, None)
        in_use = set(self.open.values()) - {0}
        possible = sorted({0} | (set(self.loaded) if len(in_use) < SLOTS else in_use))
        self.open[slot] = data.draw(st.sampled_from(possible))
        self.table.open(opening(slot, self.open[slot]))

    @rule(slot=st.integers(0, SEQUENCES - 1))
    def close(self, slot: int) -> None:
        self.open.pop(slot, None)
        self.table.close(slot)

    @rule()
    def reset(self) -> None:
        self.open.clear()
        self.table.reset()

    @invariant()
    def every_open_sequence_has_its_own(self) -> None:
        slots = np.arange(SEQUENCES)
        places = self.table.rows(slots, np.ones_like(slots))
        found = [-1] * SEQUENCES if places is None else places.tolist()
        for slot, place in enumerate(found):
            id = self.open.get(slot, 0)
            assert (self.shelf.held[place] == f"a{id}") if id else place == -1

    @invariant()
    def nothing_that_was_unloaded_is_kept(self) -> None:
        assert set(self.shelf.held.values()) <= {f"a{id}" for id in self.loaded}


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTable = Machine.TestCase


def test_who_gives_way() -> None:
    """An empty slot first, then the least recently used, a pinned one last."""
    shelf = Shelf()
    table = AdapterTable(shelf, 3, 4)
    table.set([adapter(id, pinned=id == 1) for id in range(1, 7)])
    assert shelf.held == {0: "a1"}
    for id in (2, 3, 2, 4):
        table.open(opening(0, id))
    assert set(shelf.held.values()) == {"a1", "a2", "a4"}
    table.open(opening(1, 5))
    assert set(shelf.held.values()) == {"a1", "a4", "a5"}
    table.open(opening(2, 6))
    assert set(shelf.held.values()) == {"a4", "a5", "a6"}


def test_what_cannot_be_read_again_is_said_to_those_who_ask_for_it() -> None:
    table = AdapterTable(Shelf(), 2, 4)
    other = Adapter(2, "b", "b", "of other files")
    assert table.set([adapter(1, name="x"), other]) == {
        1: "The adapter 'x' cannot be loaded again: no x.",
        2: "The files of adapter 'b' have changed since it was loaded.",
    }
    table.open(opening(0, 1))
    table.open(opening(1, 3))
    assert "cannot be loaded again" in str(table.refusal(0))
    assert table.refusal(1) is UNLOADED
    table.close(0)
    assert table.refusal(0) is None


def test_an_adapter_that_is_unloaded_in_use_stays_until_its_last_sequence_ends() -> None:
    shelf = Shelf()
    table = AdapterTable(shelf, 2, 4)
    table.set([adapter(1)])
    table.open(opening(0, 1))
    table.open(opening(1, 1))
    table.set([])
    table.close(0)
    assert shelf.held == {0: "a1"}
    table.close(1)
    assert not shelf.held
