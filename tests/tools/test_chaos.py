"""The judges of a chaos run: whatever a client may be cheated of is seen, and nothing else is."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from runtime.failpoints import POINTS, parse
from tools.chaos import failpoints, soak
from tools.chaos.checker import check, recoveries
from tools.chaos.clients import Receipt
from tools.chaos.nemesis import Fault
from tools.chaos.report import HANG_SECONDS, Report

PEACE = Receipt(
    3,
    "responses",
    texts={0: "one two three"},
    logprobs=[{"token": "one", "logprob": -0.5}],
    numbers=[0, 1, 2, 3],
    finishes=["response.completed"],
    arrivals=[0.0, 0.1, 0.2],
    tokens=3,
)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"texts": {0: "one two"}}, "lost"),
        ({"texts": {0: "one two three three"}}, "duplicated"),
        ({"texts": {0: "one too three"}}, "wrong at 5"),
        ({"texts": {0: "one two three", 1: "x"}}, "nobody asked for"),
        ({"numbers": [0, 1, 3, 4]}, "not contiguous"),
        ({"numbers": [0, 1, 1, 2, 3]}, "not contiguous"),
        ({"finishes": []}, "finished"),
        ({"finishes": ["response.completed"] * 2}, "finished"),
        ({"tokens": 4}, "usage"),
        ({"logprobs": [{"token": "one", "logprob": -0.6}]}, "logprobs"),
        ({"logprobs": []}, "logprobs"),
        ({"error": "lost after 60 tries"}, "lost after 60 tries"),
    ],
)
def test_every_kind_of_loss_is_seen(change: dict[str, Any], what: str) -> None:
    (verdict,) = check(dataclasses.replace(PEACE, **change), PEACE)
    assert (verdict.index, what in verdict.what) == (3, True)


def test_an_exact_answer_is_good_whenever_it_came() -> None:
    assert check(dataclasses.replace(PEACE, arrivals=[5.0], resumes=3), PEACE) == []


def test_a_pause_lasts_from_the_kill_to_the_end_of_the_longest_gap() -> None:
    receipt = dataclasses.replace(PEACE, arrivals=[0.0, 1.0, 1.1, 1.6, 1.7])
    kill = Fault(1.05, "executor.0", "kill")
    assert recoveries([kill, Fault(9.0, "executor.0", "kill")], [receipt]) == [pytest.approx(0.55)]


def test_a_report_is_clean_only_if_nothing_at_all_is_wrong() -> None:
    stop = Fault(1.0, "scheduler.0", "stop", 9.0, died=1.0 + HANG_SECONDS + 0.3)
    report = Report([stop], [PEACE], [], [0.1, 0.3])
    assert report.clean
    assert report.detections == [pytest.approx(0.3)]
    assert "| stopped actors killed as hung | 1 |" in report.lines()
    assert not dataclasses.replace(report, leaks=["a page"]).clean
    assert not dataclasses.replace(report, verdicts=check(dataclasses.replace(PEACE, tokens=1), PEACE)).clean
    late = dataclasses.replace(stop, outlived=True)
    assert not dataclasses.replace(report, faults=[late]).clean


def test_a_sweep_holds_every_point_of_every_kind_as_often_as_was_asked() -> None:
    cases = list(failpoints.sweep(failpoints.KINDS, POINTS, "kill", 20))
    assert len(cases) == sum(len(point.kinds) for point in POINTS)
    for case in cases:
        rules = parse(case.rules)
        assert len(rules) == 20
        (goal,) = case.goals.values()
        assert goal == max(rule.last for rule in rules) + 1
        assert {rule.actor for rule in rules} == set(case.goals)


def test_a_parade_leads_every_actor_past_each_of_its_points() -> None:
    case = failpoints.parade(("executor", "balancer"), POINTS, rounds=2)
    rules = parse(case.rules)
    mine = [rule for rule in rules if rule.actor == "executor.0"]
    assert [rule.first for rule in mine] == list(range(1, len(mine) + 1))
    assert case.goals["executor.0"] == len(mine) + 1
    assert {rule.actor for rule in rules} == {"executor.0", "balancer"}


def test_growth_is_that_of_the_medians_after_the_warm_up() -> None:
    flat = [9.0] * 30 + [100.0] * 70
    assert soak.growth(flat) == 0
    assert soak.growth([*flat[:-1], 1e9]) == 0, "one outlier is no growth"
    assert soak.growth([float(value) for value in range(100)]) > 0.3


def test_adapters_come_and_go_under_load() -> None:
    command = [sys.executable, "-m", "tools.chaos", "adapters", "--rounds", "12", "--kill-every", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nothing is wrong"), done.stdout
    assert "12 loads and unloads" in done.stdout and "2 executors killed" in done.stdout
