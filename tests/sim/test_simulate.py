"""The simulator: exact tokens, the same figures every time, and what the figures must show."""

from __future__ import annotations

import dataclasses

import pytest
from click.testing import CliRunner

from protocols.config import Balance
from tools.simulate import main, simulate
from tools.simulation.cluster import Options
from tools.simulation.prefixes import tree_costs
from tools.simulation.turns import turn_costs
from tools.simulation.workload import Workload

LOAD = Workload(requests=60, rate=40.0, prompt=64, output=24, longest=400, prefix=64)


def test_the_same_seed_gives_the_same_figures() -> None:
    first = simulate(Options(), LOAD)
    assert simulate(Options(), LOAD) == first
    assert simulate(Options(), dataclasses.replace(LOAD, seed=1)) != first


def test_overlap_hides_the_scheduler_behind_the_device() -> None:
    slow = [simulate(Options(depth=depth, turn_ms=4.0), LOAD).tpot[0] for depth in (1, 2)]
    assert slow[1] < 0.75 * slow[0]


def test_the_prefix_cache_shows_in_the_figures() -> None:
    assert simulate(Options(), LOAD).hit_rate > 0.2
    assert simulate(Options(radix=False), LOAD).hit_rate == 0.0


def test_a_tight_pool_retracts_and_still_gives_every_token() -> None:
    load = Workload(requests=60, rate=0.0, prompt=16, output=250, longest=400, prefixes=0)
    roomy, tight = (simulate(Options(pages=pages, radix=False), load) for pages in (4096, 100))
    assert roomy.preemptions == 0 and tight.preemptions > 0
    assert tight.seconds > roomy.seconds


@pytest.mark.parametrize("replicas", [2, 16])
def test_minimum_tokens_balances_tokens_best(replicas: int) -> None:
    load = Workload(
        requests=30 * replicas,
        rate=14.0 * replicas,
        prompt=256,
        output=32,
        skew=1.8,
        output_skew=0.5,
        longest=4096,
        prefixes=0,
    )
    imbalance = {
        policy: simulate(Options(replicas=replicas, balance=policy, radix=False), load).imbalance
        for policy in Balance
    }
    assert imbalance[Balance.MINIMUM_TOKENS] < imbalance[Balance.SHORTEST_QUEUE]
    assert imbalance[Balance.MINIMUM_TOKENS] < 0.85 * imbalance[Balance.ROUND_ROBIN]


def test_a_turn_costs_what_changed() -> None:
    """Ten times the target of 50 us + 1 us a request: this guards the order of growth, not a machine."""
    assert min(turn_costs(512, steps=30)) < 10 * (50 + 512)


def test_a_full_tree_costs_microseconds() -> None:
    costs = tree_costs(tokens=200_000)
    assert max(costs.values()) < 500


def test_the_command_line_prints_a_report() -> None:
    result = CliRunner().invoke(main, ["run", "--requests", "5", "--prompt", "20", "--output", "5"])
    assert result.exit_code == 0 and "every token as the oracle says" in result.output
    table = CliRunner().invoke(main, ["balance", "--replicas", "2", "--each", "2"])
    assert table.exit_code == 0 and "minimum_tokens" in table.output
