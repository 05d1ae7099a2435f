"""The balancer's decisions against a count of everything, kept by hand."""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from actors.balance import Balancer, Loads
from protocols.config import Balance


def loads(
    requests: list[int], tokens: list[int], last: list[int] | None = None, ready: list[bool] | None = None
) -> Loads:
    count = len(tokens)
    return Loads(
        np.array(ready or [True] * count),
        np.array(requests, np.int64),
        np.array(tokens, np.int64),
        np.array(last or [0] * count, np.int64),
    )


def test_round_robin_takes_turns() -> None:
    balancer = Balancer(3, Balance.ROUND_ROBIN)
    board = loads([9, 0, 0], [900, 0, 0])
    assert [balancer.choose(board, 10)[0] for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_each_policy_looks_at_its_own_figure() -> None:
    board = loads([5, 1, 3], [10, 500, 90])
    assert Balancer(3, Balance.SHORTEST_QUEUE).choose(board, 10) == (1, 1)
    assert Balancer(3, Balance.MINIMUM_TOKENS).choose(board, 10) == (0, 1)


def test_what_is_on_its_way_counts_until_the_scheduler_counts_it() -> None:
    balancer = Balancer(2, Balance.MINIMUM_TOKENS)
    before = loads([0, 0], [0, 100])
    assert balancer.choose(before, 300) == (0, 1)
    assert balancer.choose(before, 100) == (1, 1), "300 tokens are on their way to replica 0"
    assert balancer.choose(before, 10) == (1, 2)
    landed = loads([1, 1], [300, 200], last=[1, 1])
    assert balancer.choose(landed, 10) == (1, 3)


def test_equals_take_turns() -> None:
    balancer = Balancer(4, Balance.MINIMUM_TOKENS)
    board = loads([0] * 4, [0] * 4)
    assert sorted(balancer.choose(board, 10)[0] for _ in range(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("policy", list(Balance))
def test_who_is_not_ready_is_passed_over(policy: Balance) -> None:
    balancer = Balancer(3, policy)
    board = loads([0, 7, 9], [0, 70, 90], ready=[False, True, True])
    assert {balancer.choose(board, 1000)[0] for _ in range(6)} == {1, 2}


def test_when_nobody_is_ready_the_mail_waits_for_somebody() -> None:
    assert Balancer(2, Balance.MINIMUM_TOKENS).choose(loads([0, 0], [5, 1], ready=[False] * 2), 10) == (1, 1)


def test_numbers_go_on_above_what_a_scheduler_has_seen() -> None:
    balancer = Balancer(1, Balance.MINIMUM_TOKENS)
    assert balancer.choose(loads([0], [0], last=[41]), 10) == (0, 42)


@dataclasses.dataclass
class Replica:
    """A scheduler with a ring: dispatches unread, tokens counted, last number seen."""

    ring: deque[tuple[int, int]] = dataclasses.field(default_factory=deque)
    tokens: int = 0
    last: int = 0


class BalanceMachine(RuleBasedStateMachine):
    """Schedulers read their mail whenever they like; the choice is always the replica with least in all."""

    @initialize(replicas=st.integers(1, 4))
    def start(self, replicas: int) -> None:
        self.replicas = [Replica() for _ in range(replicas)]
        self.balancer = Balancer(replicas, Balance.MINIMUM_TOKENS)

    @rule(tokens=st.integers(1, 50))
    def dispatch(self, tokens: int) -> None:
        board = loads(
            [0] * len(self.replicas), [r.tokens for r in self.replicas], [r.last for r in self.replicas]
        )
        totals = [r.tokens + sum(tokens for _, tokens in r.ring) for r in self.replicas]
        replica, number = self.balancer.choose(board, tokens)
        assert totals[replica] == min(totals)
        self.replicas[replica].ring.append((number, tokens))

    @rule(which=st.integers(0, 3), count=st.integers(1, 3))
    def read(self, which: int, count: int) -> None:
        replica = self.replicas[which % len(self.replicas)]
        for _ in range(min(count, len(replica.ring))):
            number, tokens = replica.ring.popleft()
            assert number > replica.last
            replica.last = number
            replica.tokens += tokens

    @rule(which=st.integers(0, 3), share=st.floats(0, 1))
    def work(self, which: int, share: float) -> None:
        replica = self.replicas[which % len(self.replicas)]
        replica.tokens = int(replica.tokens * share)


TestBalance = BalanceMachine.TestCase
