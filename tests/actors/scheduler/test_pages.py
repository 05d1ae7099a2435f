"""The page pool against a set."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.scheduler.pages import PagePool

TOTAL = 12


class PoolMachine(RuleBasedStateMachine):
    """Taking and giving back in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(TOTAL)
        self.held: list[int] = []

    @rule(count=st.integers(0, TOTAL))
    def take(self, count: int) -> None:
        if count <= len(self.pool):
            taken = self.pool.take(count)
            assert len(taken) == count and not set(taken) & set(self.held)
            self.held += taken

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.held), unique=True))
        self.pool.give(chosen)
        self.held = [page for page in self.held if page not in chosen]

    @invariant()
    def every_page_is_somewhere(self) -> None:
        assert len(self.pool) + len(self.held) == TOTAL
        assert self.pool.free() | set(self.held) == set(range(TOTAL))


TestPool = PoolMachine.TestCase


def test_a_page_freed_twice_is_found() -> None:
    pool = PagePool(4)
    (page,) = pool.take(1)
    pool.give([page, page])
    with pytest.raises(AssertionError, match="twice"):
        pool.free()


def test_more_than_there_is_cannot_be_taken() -> None:
    with pytest.raises(AssertionError, match="more pages"):
        PagePool(2).take(3)
