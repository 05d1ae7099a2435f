"""Simulate schedulers in virtual time, and measure what their decisions cost in real time.

    python -m tools.simulate run --rate 40 --depth 2         one replica
    python -m tools.simulate balance --replicas 16           the balancing policies side by side
    python -m tools.simulate turns                           microseconds of a turn, by running requests
    python -m tools.simulate prefixes                        microseconds of the radix tree's operations

The cores are the real ones; the device is a cost model: fixed + token * tokens + kv * context ms a step.
"""

from __future__ import annotations

import statistics
import time

import click

from protocols.config import Balance, Policy
from tools.simulation.cluster import Cluster, Options
from tools.simulation.executor import Cost
from tools.simulation.prefixes import tree_costs
from tools.simulation.report import Report, report
from tools.simulation.turns import turn_costs
from tools.simulation.workload import Workload, arrivals

RUNNING = (1, 64, 1024, 8192)


def simulate(options: Options, load: Workload) -> Report:
    """Run `load` on a cluster; AssertionError when any token is wrong."""
    cluster = Cluster(options)
    cluster.run(arrivals(load))
    return report(cluster)


@click.group()
def main() -> None:
    """Schedulers in virtual time."""


@main.command()
@click.option("--requests", default=500, show_default=True)
@click.option("--rate", default=20.0, show_default=True, help="Arrivals a second; 0: all at once.")
@click.option("--prompt", default=256, show_default=True, help="Median tokens.")
@click.option("--output", default=128, show_default=True, help="Median tokens.")
@click.option("--skew", default=1.0, show_default=True, help="Sigma of the log-normal lengths.")
@click.option("--prefixes", default=8, show_default=True, help="Number of shared system prompts.")
@click.option("--prefix", default=256, show_default=True, help="Tokens of each.")
@click.option("--seed", default=0, show_default=True)
@click.option("--depth", default=2, show_default=True)
@click.option("--policy", type=click.Choice([p.value for p in Policy]), default="fcfs", show_default=True)
@click.option("--radix/--no-radix", default=True, show_default=True)
@click.option("--pages", default=16384, show_default=True)
@click.option("--page-size", default=16, show_default=True)
@click.option("--slots", default=256, show_default=True)
@click.option("--chunk-size", default=2048, show_default=True)
@click.option("--turn-ms", default=0.5, show_default=True, help="CPU time of a scheduler's turn.")
@click.option("--fixed", default=6.0, show_default=True, help="Cost model: ms of an empty step.")
@click.option("--token", default=0.02, show_default=True, help="Cost model: ms a token.")
@click.option("--kv", default=0.00004, show_default=True, help="Cost model: ms a token of context.")
def run(
    requests: int,
    rate: float,
    prompt: int,
    output: int,
    skew: float,
    prefixes: int,
    prefix: int,
    seed: int,
    depth: int,
    policy: str,
    radix: bool,
    pages: int,
    page_size: int,
    slots: int,
    chunk_size: int,
    turn_ms: float,
    fixed: float,
    token: float,
    kv: float,
) -> None:
    """One replica under one workload."""
    load = Workload(
        requests=requests,
        rate=rate,
        prompt=prompt,
        output=output,
        skew=skew,
        prefixes=prefixes,
        prefix=prefix,
        seed=seed,
    )
    options = Options(
        depth=depth,
        policy=Policy(policy),
        radix=radix,
        pages=pages,
        page_size=page_size,
        slots=slots,
        chunk_size=chunk_size,
        turn_ms=turn_ms,
        cost=Cost(fixed, token, kv),
    )
    start = time.perf_counter()
    click.echo(simulate(options, load))
    click.echo(f"real seconds      {time.perf_counter() - start:.1f}")


@main.command()
@click.option("--replicas", default=16, show_default=True)
@click.option("--each", default=60, show_default=True, help="Requests for each replica.")
@click.option("--rate", default=16.0, show_default=True, help="Arrivals a second for each replica.")
@click.option("--skew", default=1.8, show_default=True, help="Sigma of the log-normal prompt lengths.")
@click.option("--seed", default=0, show_default=True)
def balance(replicas: int, each: int, rate: float, skew: float, seed: int) -> None:
    """The balancing policies side by side, on prompts of very different lengths."""
    load = Workload(
        requests=replicas * each,
        rate=replicas * rate,
        prompt=512,
        output=64,
        skew=skew,
        output_skew=0.5,
        prefixes=0,
        seed=seed,
    )
    click.echo(f"{'':16}max/mean tokens   latency p50   p99 ms    TTFT p50   p99 ms")
    for policy in Balance:
        result = simulate(Options(replicas=replicas, balance=policy, radix=False), load)
        click.echo(
            f"{policy.value:16}{result.imbalance:15.2f}{result.latency[0]:14.0f}{result.latency[1]:9.0f}"
            f"{result.ttft[0]:12.0f}{result.ttft[1]:9.0f}"
        )


@main.command()
@click.option("--depth", default=2, show_default=True)
@click.option("--steps", default=100, show_default=True)
def turns(depth: int, steps: int) -> None:
    """CPU time of a turn that takes one result in and sends one plan out."""
    click.echo("running    median us     p90 us   us/request")
    for running in RUNNING:
        costs = turn_costs(running, depth=depth, steps=steps)
        median, p90 = statistics.median(costs), statistics.quantiles(costs, n=10)[-1]
        click.echo(f"{running:7}{median:13.1f}{p90:11.1f}{median / running:13.3f}")


@main.command()
@click.option("--tokens", default=1_000_000, show_default=True)
@click.option("--page-size", default=16, show_default=True)
def prefixes(tokens: int, page_size: int) -> None:
    """CPU time of the radix tree's operations on prompts of 2048 tokens, with `tokens` tokens cached."""
    for name, cost in tree_costs(tokens, page_size).items():
        click.echo(f"{name:16}{cost:8.1f} us")


if __name__ == "__main__":
    main()
