"""Chaos in short: real companies, real SIGKILLs, real clients, and every answer compared with peace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from runtime.failpoints import POINTS
from tools.chaos.failpoints import Campaign, parade
from tools.chaos.report import Report
from tools.chaos.siege import random_faults
from tools.chaos.soak import soaked
from tools.chaos.total import Campaign as TotalKills

pytestmark = pytest.mark.timeout(600)

VICTIMS = ("executor", "scheduler", "tokenizer", "frontend")


def siege(victims: Sequence[str] = VICTIMS, **chosen: Any) -> Report:
    """A short run of the hash oracle under the nemesis; `chosen` says what it does and how much is asked."""
    return random_faults(oracle="hash", model="", step_ms=4.0, dp=1, victims=",".join(victims), **chosen)


def test_random_kills_and_double_kills() -> None:
    report = siege(
        kinds="kill=1,double=0.5",
        seed=1,
        streams=12,
        count=16,
        tokens=40,
        faults=10,
        interval=0.3,
    )
    assert report.clean, "\n".join(report.lines())
    assert len(report.faults) >= 10
    assert {fault.actor for fault in report.faults} == {f"{kind}.0" for kind in VICTIMS}


def test_kills_while_steps_guess_tokens() -> None:
    report = siege(
        victims=("executor", "scheduler"),
        kinds="kill=1,double=0.5",
        speculate="ngram",
        seed=5,
        streams=4,
        count=8,
        tokens=80,
        faults=6,
        interval=0.3,
    )
    assert report.clean, "\n".join(report.lines())
    assert len(report.faults) >= 6


def test_a_rolling_restart_drops_no_stream() -> None:
    report = siege(
        kinds="restart=1",
        seed=3,
        streams=8,
        count=16,
        tokens=40,
        faults=5,
        interval=0.3,
    )
    assert report.clean, "\n".join(report.lines())
    assert all(receipt.restarts == receipt.resumes == 0 for receipt in report.receipts), (
        "nobody had to come back"
    )


def test_a_hung_actor_is_killed_before_it_is_replaced() -> None:
    report = siege(
        victims=("scheduler",),
        kinds="stop=1",
        seed=1,
        stops=(8.0, 8.0),
        streams=4,
        count=4,
        tokens=20,
        faults=1,
        interval=0.1,
    )
    assert report.clean, "\n".join(report.lines())
    assert [fault.died is not None for fault in report.faults] == [True]


def test_deaths_at_every_point() -> None:
    campaign = Campaign(streams=16, count=32, tokens=60, seed=0, dp=1, step_ms=4.0)
    result = campaign.run(parade(VICTIMS, POINTS, rounds=1))
    assert result.clean, "\n".join(result.problems())
    assert result.deaths == sum(
        not point.starting and kind in point.kinds for point in POINTS for kind in VICTIMS
    )


def test_nothing_is_left_of_a_company_that_is_killed_whole() -> None:
    campaign = TotalKills(streams=4, seed=3)
    assert [campaign.kill(victim).left for victim in ("tree", "supervisor")] == [(), ()]


def test_nothing_grows() -> None:
    found = soaked(requests=160, each=40, streams=8, tokens=24, seed=4)
    assert not found.verdicts and not found.leaks, found.lines()
    assert found.kills == 4
    assert min(sample.zombies for sample in found.samples[-3:]) == 0
