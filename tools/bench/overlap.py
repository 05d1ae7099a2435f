"""`python -m tools.bench overlap`: what planning ahead hides. Served tokens/s at depth 1 and at depth 2.

The hash executor stands for a device that takes `step` ms for a step, whatever is in it, while the processor
is free: one real company for each depth and step, the same load on each, depths interleaved. At depth 1 every
step waits for the mail to the scheduler and back, the commits and the planning; at depth 2 only for what of
it does not fit into a step. The limit is a token of every client in each step, prefill left out.
"""

from __future__ import annotations

import pathlib

import click

from tools.actorctl.serve import DEMO_MODEL
from tools.bench import load, serve
from tools.bench.statistics import number, spread

STEPS_MS = (1.0, 5.0, 20.0)
DEPTHS = (1, 2)


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=pathlib.Path), default=DEMO_MODEL)
@click.option("--clients", default=32, show_default=True)
@click.option("--requests", default=64, show_default=True, help="Requests of a run.")
@click.option("--output", default=128, show_default=True, help="Tokens of an answer.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--step-ms", "steps_ms", multiple=True, type=float, default=STEPS_MS, show_default=True)
def overlap(
    model: pathlib.Path, clients: int, requests: int, output: int, repeats: int, steps_ms: tuple[float, ...]
) -> None:
    """Tokens a second at depth 1 and 2, by the time of a step."""
    workload = load.Workload("bench", clients, serve.random_prompts(requests, 16), output)
    click.echo("| step ms | depth 1 tok/s | depth 2 tok/s | depth 2 ÷ 1 | limit tok/s |")
    click.echo("|---|---|---|---|---|")
    for step_ms in steps_ms:
        rounds = [{depth: rate(model, workload, depth, step_ms) for depth in DEPTHS} for _ in range(repeats)]
        one, two = (spread([round_[depth] for round_ in rounds]) for depth in DEPTHS)
        ratio = spread([round_[2] / round_[1] for round_ in rounds])
        limit = number(1000 * clients / step_ms)
        click.echo(f"| {number(step_ms)} | {one} | {two} | {ratio} | {limit} |")


def rate(model: pathlib.Path, workload: load.Workload, depth: int, step_ms: float) -> float:
    """Tokens a second of a company over HTTP, the second of two runs."""
    options = {
        "--served-name": workload.model,
        "--max-running": workload.clients,
        "--executor": "hash",
        "--step-ms": step_ms,
        "--depth": depth,
    }
    arguments = [str(word) for option in options.items() for word in option]
    with serve.company([str(model), *arguments]) as address:
        runs = [load.run(address.host, address.port, workload, load.HttpDialogue) for _ in range(2)]
    rates: float = serve.summary(runs[-1])["tokens_per_s"]
    return rates
