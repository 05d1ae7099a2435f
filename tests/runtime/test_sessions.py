"""What sessions hold: against a model that keeps every conversation whole."""

from __future__ import annotations

import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocols.errors import VerbError
from runtime.sessions import MOST_CONTEXT, MOST_SESSIONS, MOST_TOKENS, Continuation, Node, Sessions


def tokens(*ids: int) -> bytes:
    return array.array("i", ids).tobytes()


IDS = st.lists(st.integers(0, 99), max_size=4)


class Machine(RuleBasedStateMachine):
    """One session; `whole`: every conversation in it, and where its answer begins."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions()
        self.sessions.open("s", 10_000, 100.0, 0.0)
        self.whole: dict[str, tuple[list[int], int]] = {}
        self.parents: dict[str, str] = {}
        self.count = 0

    @rule(data=st.data(), added=IDS, answer=IDS, bare=st.booleans(), replace=st.booleans())
    def turn(
        self, data: st.DataObject, added: list[int], answer: list[int], bare: bool, replace: bool
    ) -> None:
        rid = data.draw(st.sampled_from(["", *self.whole]))
        known, begins = self.whole.get(rid, ([], 0))
        known = known[:begins] if bare else known
        offset = data.draw(st.integers(-len(known), len(known)))
        wanted = known[: offset if offset > 0 else len(known) + offset]
        before = self.sessions.go_on(Continuation("s", rid, offset, bare, replace), "me", 8, 1.0)
        assert before == tokens(*wanted)
        if replace:
            self._forget(rid)
        self.count += 1
        name = f"r{self.count}"
        node = Node(rid, len(wanted), tokens(*added, *answer), len(wanted) + len(added))
        self.sessions.keep("s", name, node, 1.0)
        self.whole[name] = [*wanted, *added, *answer], len(wanted) + len(added)
        self.parents[name] = rid

    def _forget(self, rid: str) -> None:
        for child in [name for name, parent in self.parents.items() if parent == rid]:
            self._forget(child)
            del self.parents[child], self.whole[child]

    @invariant()
    def holds_what_it_counts(self) -> None:
        (session,) = self.sessions.all(1.0)
        assert session.nodes.keys() == self.whole.keys()
        assert session.tokens == sum(len(node.added) // 4 for node in session.nodes.values())


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)


def test_limits() -> None:
    sessions = Sessions()
    sessions.open("a", 10, 60.0, 0.0)
    with pytest.raises(VerbError, match="already"):
        sessions.open("a", 10, 60.0, 0.0)
    with pytest.raises(VerbError, match="leave room for"):
        sessions.open("b", MOST_TOKENS, 60.0, 0.0)
    with pytest.raises(VerbError, match="holds 0 of 10 tokens"):
        sessions.go_on(Continuation("a"), "", 11, 0.0)
    with pytest.raises(VerbError, match="tokens at most"):
        sessions.go_on(Continuation("a"), "", MOST_CONTEXT + 1, 0.0)
    for i in range(1, MOST_SESSIONS):
        sessions.open(str(i), 1, 60.0, 0.0)
    with pytest.raises(VerbError, match="close some"):
        sessions.open("c", 1, 60.0, 0.0)
    assert sessions.open("", 1, 60.0, 61.0).id, "all others have timed out"


def test_requests_at_the_same_time_find_room_only_once() -> None:
    sessions = Sessions()
    sessions.open("a", 4, 100.0, 0.0)
    for _ in range(2):
        sessions.go_on(Continuation("a"), "me", 4, 0.0)
    sessions.keep("a", "r", Node("", 0, tokens(1, 2, 3), 1), 0.0)
    with pytest.raises(VerbError, match="no room left for request 's'"):
        sessions.keep("a", "s", Node("", 0, tokens(1, 2, 3), 1), 0.0)
    sessions.keep("a", "s", Node("", 0, tokens(1), 1), 0.0)
    assert [(each.tokens, [*each.nodes]) for each in sessions.all(0.0)] == [(4, ["r", "s"])]


def test_who_may_go_on() -> None:
    sessions = Sessions()
    sessions.open("a", 10, 60.0, 0.0)
    sessions.go_on(Continuation("a"), "one", 1, 50.0)
    sessions.keep("a", "r", Node("", 0, tokens(1, 2), 1), 50.0)
    with pytest.raises(VerbError, match="no session"):
        sessions.go_on(Continuation("a"), "two", 1, 50.0)
    with pytest.raises(VerbError, match="no request 'x'"):
        sessions.go_on(Continuation("a", "x"), "one", 1, 50.0)
    with pytest.raises(VerbError, match="beyond the 2 tokens"):
        sessions.go_on(Continuation("a", "r", 3), "one", 1, 50.0)
    with pytest.raises(VerbError, match="already"):
        sessions.keep("a", "r", Node("", 0, b"", 0), 50.0)
    with pytest.raises(VerbError, match="no longer has"):
        sessions.keep("a", "s", Node("gone", 2, b"", 2), 50.0)
    assert sessions.go_on(Continuation("a", "r"), "one", 1, 109.0) == tokens(1, 2)
    with pytest.raises(VerbError, match="timed out"):
        sessions.close("a", 170.0)


def test_a_long_conversation() -> None:
    sessions = Sessions()
    sessions.open("a", 2000, 60.0, 0.0)
    for i in range(1100):
        rid = str(i - 1) if i else ""
        assert len(sessions.go_on(Continuation("a", rid), "", 1, 0.0)) == 4 * i
        sessions.keep("a", str(i), Node(rid, i, tokens(i), i), 0.0)
    sessions.go_on(Continuation("a", replace=True), "", 1, 0.0)
    assert next(sessions.all(0.0)).tokens == 0
