"""Trees that contradict themselves are refused."""

from __future__ import annotations

import dataclasses

import pytest

from runtime.tree import Child, Company, Group, Strategy, check, leaves
from tests.faults.players import config


def _company(*members: Child | Group) -> Company:
    return Company(config("x"), Group("root", Strategy.ONE_FOR_ONE, members))


A = Child("a", "k", "m:f", sends=("b",))
B = Child("b", "k", "m:f")


def test_a_good_tree() -> None:
    check(_company(A, Group("g", Strategy.ONE_FOR_ALL, (B,))))


def test_leaves_are_in_order() -> None:
    root = _company(A, Group("g", Strategy.ONE_FOR_ALL, (B,)), Child("c", "k", "m:f")).root
    assert [child.name for child in leaves(root)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ((), "no actor"),
        ((B, B), "more than one actor is named b"),
        ((B, Group("root", Strategy.ONE_FOR_ALL, ())), "more than one group is named root"),
        ((A,), "a sends to unknown b"),
        ((dataclasses.replace(A, sends=("b", "b")), B), "names a destination twice"),
        ((dataclasses.replace(B, entry="m.f"),), "is not 'module:function'"),
        (
            (
                dataclasses.replace(B, understudy="u"),
                Child("c", "k", "m:f", env={"X": "1"}, understudy="u"),
            ),
            "understudy 'u' differ in their environment",
        ),
    ],
)
def test_a_bad_tree(members: tuple[Child | Group, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(_company(*members))
