"""The restart policy: strategies, budgets, escalation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.restart import BACKOFF, GiveUp, Restart, Restarts
from runtime.tree import Budget, Child, Group, Strategy, leaves


def _child(name: str) -> Child:
    return Child(name, "k", "m:f")


def _group(strategy: Strategy, *names: str, restarts: int = 2, seconds: float = 10.0) -> Group:
    return Group("g", strategy, tuple(map(_child, names)), Budget(restarts, seconds))


def _nested(outer: int = 1, inner: int = 1) -> Group:
    ranks = Group("ranks", Strategy.ONE_FOR_ALL, (_child("r0"), _child("r1")), Budget(inner, 10.0))
    return Group("root", Strategy.REST_FOR_ONE, (_child("a"), ranks, _child("z")), Budget(outer, 10.0))


def test_one_for_one_restarts_only_the_dead() -> None:
    restarts = Restarts(_group(Strategy.ONE_FOR_ONE, "a", "b", "c"))
    assert restarts.died("b", 0.0, progress=True) == Restart(("b",))


def test_one_for_all_restarts_everybody() -> None:
    restarts = Restarts(_group(Strategy.ONE_FOR_ALL, "a", "b", "c"))
    assert restarts.died("b", 0.0, progress=True) == Restart(("a", "b", "c"))


def test_rest_for_one_restarts_those_declared_after() -> None:
    restarts = Restarts(_group(Strategy.REST_FOR_ONE, "a", "b", "c"))
    assert restarts.died("b", 0.0, progress=True) == Restart(("b", "c"))


def test_a_strategy_does_not_reach_beyond_its_group() -> None:
    restarts = Restarts(_nested())
    assert restarts.died("r1", 0.0, progress=True) == Restart(("r0", "r1"))
    assert restarts.died("a", 0.0, progress=True) == Restart(("a", "r0", "r1", "z"))


def test_pauses_grow_and_stay() -> None:
    restarts = Restarts(_group(Strategy.ONE_FOR_ONE, "a", restarts=10))
    delays = [restarts.died("a", float(i), progress=False) for i in range(7)]
    assert delays == [Restart(("a",), delay) for delay in (*BACKOFF, BACKOFF[-1], BACKOFF[-1])]


def test_a_spent_budget_is_the_end() -> None:
    restarts = Restarts(_group(Strategy.ONE_FOR_ONE, "a", "b"))
    assert isinstance(restarts.died("a", 0.0, progress=False), Restart)
    assert isinstance(restarts.died("b", 1.0, progress=False), Restart)
    verdict = restarts.died("a", 2.0, progress=False)
    assert isinstance(verdict, GiveUp)
    assert verdict.sentence == (
        "a died again without having got any work done, and g allows 2 such deaths within 10 s"
    )


def test_old_deaths_are_forgotten() -> None:
    restarts = Restarts(_group(Strategy.ONE_FOR_ONE, "a", restarts=1, seconds=10.0))
    for i in range(20):
        assert isinstance(restarts.died("a", 10.5 * i, progress=False), Restart)


def test_progress_clears_the_slate() -> None:
    restarts = Restarts(_group(Strategy.ONE_FOR_ONE, "a", restarts=1))
    for i in range(20):
        assert isinstance(restarts.died("a", float(i), progress=i % 2 == 0), Restart)
    assert restarts.died("a", 20.0, progress=True) == Restart(("a",), 0.0)


def test_progress_makes_the_next_pause_short_again() -> None:
    restarts = Restarts(_group(Strategy.ONE_FOR_ONE, "a", restarts=10))
    for i in range(3):
        restarts.died("a", float(i), progress=False)
    restarts.died("a", 3.0, progress=True)
    assert restarts.died("a", 4.0, progress=False) == Restart(("a",), 0.0)


def test_a_failed_group_is_a_member_that_died() -> None:
    restarts = Restarts(_nested(outer=3, inner=1))
    assert restarts.died("r0", 0.0, progress=False) == Restart(("r0", "r1"), 0.0)
    assert restarts.died("r1", 1.0, progress=False) == Restart(("r0", "r1", "z"), 0.0)
    assert restarts.died("r0", 2.0, progress=False) == Restart(("r0", "r1"), 0.1)
    assert isinstance(restarts.died("r0", 3.0, progress=False), GiveUp)


def test_a_budget_counts_deaths_at_any_depth() -> None:
    """Else a slow crash loop would spend the inner budget again and again and never the outer one."""
    restarts = Restarts(_nested(outer=2, inner=5))
    assert isinstance(restarts.died("r0", 0.0, progress=False), Restart)
    assert isinstance(restarts.died("a", 3.0, progress=False), Restart)
    assert isinstance(restarts.died("r0", 6.0, progress=False), GiveUp)


STRATEGIES = st.sampled_from(list(Strategy))


@st.composite
def trees(draw: st.DrawFn) -> Group:
    """Trees of up to three levels, names unique."""
    count = 0

    def group(depth: int) -> Group:
        nonlocal count
        members: list[Child | Group] = []
        for _ in range(draw(st.integers(1, 3))):
            if depth and draw(st.booleans()):
                members.append(group(depth - 1))
            else:
                count += 1
                members.append(_child(f"a{count}"))
        count += 1
        return Group(f"g{count}", draw(STRATEGIES), tuple(members), Budget(draw(st.integers(0, 3)), 10.0))

    return group(2)


@given(tree=trees(), data=st.data())
def test_whatever_dies_is_restarted_or_the_company_ends(tree: Group, data: st.DataObject) -> None:
    restarts = Restarts(tree)
    names = [child.name for child in leaves(tree)]
    now = 0.0
    for _ in range(data.draw(st.integers(1, 25))):
        now += data.draw(st.floats(0.0, 3.0))
        name, progress = data.draw(st.sampled_from(names)), data.draw(st.booleans())
        match restarts.died(name, now, progress=progress):
            case Restart(affected, delay):
                assert name in affected
                assert [each for each in names if each in affected] == list(affected), "declared order"
                assert set(restarts.affected(name)) <= set(affected)
                assert delay == 0.0 if progress else delay in BACKOFF
            case GiveUp():
                assert not progress
                return


@given(tree=trees(), data=st.data())
def test_nobody_crashes_for_ever(tree: Group, data: st.DataObject) -> None:
    """Whatever the groups within allow, the outermost budget bounds the deaths without progress."""
    restarts = Restarts(tree)
    names = [child.name for child in leaves(tree)]
    for i in range(tree.budget.restarts):
        restarts.died(data.draw(st.sampled_from(names)), i * 2.0, progress=False)
    now = 2.0 * tree.budget.restarts
    assert isinstance(restarts.died(data.draw(st.sampled_from(names)), now, progress=False), GiveUp)
