"""`python -m tools.bench memory`: what an executor gives back to the system, and takes again.

Its KV pool is written to first, as memory that nobody has touched costs nothing. Shown is what the kernel
says of the process: RSS, and PSS, which counts what it shares with others by its share.
"""

from __future__ import annotations

import pathlib
import time
from typing import Any

import click

from runtime import admin
from tools.actorctl.serve import DEMO_MODEL
from tools.bench import load
from tools.bench.serve import company, random_prompts, summary

STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("memory.release", {"tags": ["kv_cache"]}),
    ("memory.restore", {"tags": ["kv_cache"]}),
    ("memory.release", {"tags": ["weights"]}),
    ("memory.restore", {"tags": ["weights"]}),
    ("engine.sleep", {}),
    ("engine.wake", {}),
)
"""What is asked for, one after another."""


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=pathlib.Path), default=DEMO_MODEL)
@click.option("--kv-memory", default="256MiB", show_default=True)
@click.option("--prompts", default=128, show_default=True, help="Different ones, which fill the pool.")
@click.option("--words", default=500, show_default=True, help="Of each.")
def memory(model: pathlib.Path, kv_memory: str, prompts: int, words: int) -> None:
    """What releasing memory gives back: RSS and PSS of the executor."""
    with company([str(model), "--served-name", "bench", "--kv-memory", kv_memory]) as where:
        pid = where.pids["executor.0"]
        click.echo("| after | RSS MiB | PSS MiB | took s |\n|---|---|---|---|")
        _tell("the start", pid, 0.0)
        asked = load.Workload("bench", 16, random_prompts(prompts, words), 2)
        begun = time.monotonic()
        summary(load.run(where.host, where.port, asked, load.HttpDialogue))
        _tell("every page was written to", pid, time.monotonic() - begun)
        for verb, fields in STEPS:
            begun = time.monotonic()
            admin.ask(where.control, {"verb": verb, **fields}, timeout=600)
            _tell(f"`{' '.join((verb, *fields.get('tags', ())))}`", pid, time.monotonic() - begun)


def _tell(what: str, pid: int, seconds: float) -> None:
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    rss, pss = (
        next(int(line.split()[1]) for line in lines if line.startswith(key)) for key in ("Rss", "Pss")
    )
    click.echo(f"| {what} | {rss / 1024:.0f} | {pss / 1024:.0f} | {seconds:.2f} |")
