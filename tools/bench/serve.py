"""`python -m tools.bench serve`: a company under load over HTTP and WebSocket, beside its bare executor.

One company and one bare executor serve the whole run. After a round that only warms up, each of `--repeats`
rounds takes the same load with fresh prompts (the prefix cache knows none) over HTTP, over WebSocket (first
in every other round), and to the bare executor as batches. The served figure divided by the bare one of the
same round is what everything but the model costs; where it goes is told by the processor time of each actor,
of the supervisor and of the load itself for each token. How much of the cores others took is told too, and
rounds in which it was much give no ratio: it would say little.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import random
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from tools.actorctl.serve import DEMO_MODEL
from tools.bench import load
from tools.bench.bare import Bare, bare
from tools.bench.processor import Meter, Use
from tools.bench.statistics import number, percentile, spread
from tools.launch import launched

_WORDS = "def class return import value name self index list count while result string number data".split()
_CLIENTS: dict[str, type[load.Dialogue]] = {"http": load.HttpDialogue, "websocket": load.SocketDialogue}
QUIET = 0.05
"""The share of the cores that others may have in a round of which a ratio is told."""
_LOAD = "load"
"""The name under which the clients' own processor time is told."""


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=pathlib.Path), default=DEMO_MODEL)
@click.option("--clients", default=32, show_default=True)
@click.option("--requests", default=96, show_default=True, help="Requests of a run.")
@click.option("--words", default=48, show_default=True, help="Words of a prompt.")
@click.option("--output", default=64, show_default=True, help="Tokens of an answer.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--alone", is_flag=True, help="Without the bare executor.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=pathlib.Path), help="Write the figures here too."
)
@click.argument("options", nargs=-1)
def serve(json_path: pathlib.Path | None, **case: Any) -> None:
    """Measure serving. OPTIONS after `--` go to `actorctl serve`."""
    figures = measure(**case)
    for line in table(figures):
        click.echo(line)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2))


def measure(
    *,
    model: pathlib.Path,
    clients: int,
    requests: int,
    words: int,
    output: int,
    repeats: int,
    dtype: str,
    alone: bool = False,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures of all rounds: in each those of "http" and "websocket", and the rate "bare" unless `alone`."""
    figures: dict[str, Any] = {"clients": clients, "requests": requests, "output": output, "rounds": []}
    arguments = [
        str(model),
        "--served-name",
        "bench",
        "--dtype",
        dtype,
        "--max-running",
        str(clients),
        *options,
    ]
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(company(arguments))
        beside = None if alone else stack.enter_context(bare(model, dtype, clients))
        for turn in range(repeats + 1):
            seeds = dict(zip(_CLIENTS, (2 * turn, 2 * turn + 1), strict=True))
            workloads = {
                name: load.Workload("bench", clients, random_prompts(requests, words, seed), output)
                for name, seed in seeds.items()
            }
            round_ = _round(address, beside, workloads, turned=bool(turn % 2))
            if turn:
                figures["rounds"].append(round_)
    return figures


def _round(
    address: Address, beside: Bare | None, workloads: Mapping[str, load.Workload], *, turned: bool
) -> dict[str, Any]:
    """Each once, with prompts that the prefix cache does not know. turned: WebSocket first."""
    round_: dict[str, Any] = {}
    for name in sorted(_CLIENTS, reverse=turned):
        meter = Meter(address.pids)
        run = load.run(address.host, address.port, workloads[name], _CLIENTS[name])
        others = meter.others(known=run.processor)
        round_[name] = summary(run) | {"processor": processor(run, meter.read()), "others": others}
    if beside is not None:
        meter = Meter({"bare": beside.pid})
        prompt = round(float(round_["http"]["prompt_tokens"]))
        asked = workloads["http"]
        round_["bare"] = beside.rate(len(asked.prompts), prompt, asked.max_tokens)
        round_["bare_others"] = meter.others(known=0.0)
    return round_


def random_prompts(count: int, words: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"# {rng.random()} {i}\n" + " ".join(rng.choices(_WORDS, k=words)) for i in range(count)]


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a company listens, for clients and (`control`) administrators; the process ids of its actors and
    its supervisor."""

    host: str
    port: int
    pids: dict[str, int]
    control: str


@contextlib.contextmanager
def company(arguments: Sequence[str]) -> Iterator[Address]:
    """A company in processes of its own, once it serves."""
    with launched([*arguments, "--log-level", "warning"], kind="bench") as running:
        try:
            status = running.await_ready()
        except RuntimeError as error:
            raise click.ClickException(str(error)) from error
        _warm_up(status["url"])
        pids = {actor["name"]: actor["pid"] for actor in status["actors"]}
        pids["supervisor"] = running.process.pid
        yield Address(status["host"], status["port"], pids, running.address)
        running.process.terminate()
        running.process.wait()


def _warm_up(url: str) -> None:
    with urllib.request.urlopen(f"{url}/health_generate", timeout=120) as answer:
        answer.read()


def summary(run: load.Run) -> dict[str, Any]:
    """Rates and latencies of one run; raises ClickException when a request failed."""
    receipts, seconds = run.receipts, run.seconds
    for receipt in receipts:
        if receipt.error or not receipt.arrivals:
            raise click.ClickException(f"a request failed: {receipt.error[:500]}")
    first = [receipt.first_token for receipt in receipts]
    gaps = [gap for receipt in receipts for gap in receipt.gaps]
    return {
        "requests_per_s": len(receipts) / seconds,
        "tokens_per_s": sum(receipt.tokens for receipt in receipts) / seconds,
        "prompt_tokens": sum(receipt.prompt_tokens for receipt in receipts) / len(receipts),
        "ttft_p50_ms": 1e3 * percentile(first, 0.5),
        "ttft_p99_ms": 1e3 * percentile(first, 0.99),
        "itl_p50_ms": 1e3 * percentile(gaps, 0.5),
        "itl_p99_ms": 1e3 * percentile(gaps, 0.99),
    }


def processor(run: load.Run, uses: dict[str, Use]) -> dict[str, dict[str, float]]:
    """For each process and token: µs on a core, µs spent waiting for one, switches of both kinds."""
    tokens = sum(receipt.tokens for receipt in run.receipts)
    return {
        name: {
            "us": 1e6 * use.seconds / tokens,
            "waited_us": 1e6 * use.waited / tokens,
            "yielded": use.yielded / tokens,
            "preempted": use.preempted / tokens,
        }
        for name, use in (uses | {_LOAD: Use(run.processor)}).items()
    }


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as Markdown: medians with the range of the rounds."""
    rounds = figures["rounds"]
    columns = ("requests_per_s", "tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")
    titles = ("req/s", "tok/s", "TTFT p50 ms", "TTFT p99 ms", "ITL p50 ms", "ITL p99 ms")
    lines = [f"| over | {' | '.join(titles)} | served ÷ bare |", "|---" * (len(titles) + 2) + "|"]
    quiet = [round_ for round_ in rounds if "bare" in round_ and disturbance(round_) <= QUIET]
    for name in _CLIENTS:
        cells = [str(spread([round_[name][column] for round_ in rounds])) for column in columns]
        ratios = [round_[name]["tokens_per_s"] / round_["bare"] for round_ in quiet]
        lines.append(f"| {name} | {' | '.join(cells)} | {spread(ratios) if ratios else ''} |")
    lines.append(f"\n{number(figures['clients'])} clients, medians (low–high)")
    if rates := [round_["bare"] for round_ in rounds if "bare" in round_]:
        lines.append(f"bare executor: {spread(rates)} tok/s")
    lines.append(f"others took so much of the cores: {spread([disturbance(round_) for round_ in rounds])}")
    lines.append(f"served ÷ bare is of the {len(quiet)} rounds in which that was {QUIET:g} at most")
    for name in _CLIENTS:
        lines += ["", f"{name}: for each token", *_processor_table([round_[name] for round_ in rounds])]
    return lines


def disturbance(round_: dict[str, Any]) -> float:
    """The largest share of the cores that others took while one of the figures of a round was taken."""
    return max(*(float(round_[name]["others"]) for name in _CLIENTS), float(round_.get("bare_others", 0.0)))


def _processor_table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Medians of the runs, a line for each process."""
    lines = [
        "| process | µs on a core | µs waiting for it | went to sleep | was preempted |",
        "|---" * 5 + "|",
    ]
    for process in runs[0]["processor"]:
        used = [run["processor"][process] for run in runs]
        cells = [number(spread([each[key] for each in used]).median) for key in used[0]]
        lines.append(f"| {process} | {' | '.join(cells)} |")
    return lines
