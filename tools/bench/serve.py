"""`python -m tools.bench serve`: a company under load over HTTP and WebSocket, beside its bare executor.

One run interleaves, `--repeats` times: the bare executor on the same batch, the company over HTTP, the
company over WebSocket. The served figures divided by the bare one of the same round is what everything
but the model costs.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import random
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import click
import trio

from protocols.config import Config, read_model_card
from tools.actorctl.serve import DEMO_MODEL
from tools.bench import load, offline
from tools.bench.statistics import Spread, number, percentile, spread

_WORDS = "def class return import value name self index list count while result string number data".split()
_CLIENTS = {"http": load.http_client, "websocket": load.socket_client}


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=pathlib.Path), default=DEMO_MODEL)
@click.option("--clients", default=32, show_default=True)
@click.option("--requests", default=96, show_default=True, help="Requests of a run.")
@click.option("--words", default=48, show_default=True, help="Words of a prompt.")
@click.option("--output", default=64, show_default=True, help="Tokens of an answer.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--dtype", default="auto", show_default=True)
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
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures of all rounds: {"bare": [...], "http": [...], "websocket": [...]} and the case."""
    prompts = _prompts(requests, words)
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
    for _ in range(repeats):
        round_: dict[str, Any] = {}
        with company(arguments) as (host, port):
            for name, client in _CLIENTS.items():
                workload = load.Workload("bench", clients, prompts, output)
                receipts, seconds = trio.run(load.run, host, port, workload, client)
                round_[name] = summary(receipts, seconds)
        prompt = int(round_["http"]["prompt_tokens"])
        round_["bare"] = bare(model, dtype, clients, prompt, output)
        figures["rounds"].append(round_)
    return figures


def _prompts(count: int, words: int) -> list[str]:
    rng = random.Random(0)
    return [f"# {i}\n" + " ".join(rng.choices(_WORDS, k=words)) for i in range(count)]


def bare(model: pathlib.Path, dtype: str, clients: int, prompt: int, output: int) -> float:
    """Output tokens a second of the bare executor, in a process of its own, on one full batch."""
    arguments = (str(model), dtype, clients, prompt, output)
    code = f"from tools.bench.serve import bare_here; bare_here(*{arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def bare_here(model: str, dtype: str, clients: int, prompt: int, output: int) -> None:
    """Print the bare executor's output tokens a second; the second of two runs, the first warms up."""
    config = Config(read_model_card(pathlib.Path(model)), dtype=dtype, max_running=clients)
    executor = offline.load_executor(config)
    case = offline.Case(clients, prompt, output)
    rates = [offline.run(executor, config, case, epoch).output_rate for epoch in (1, 2)]
    print(rates[-1])


@contextlib.contextmanager
def company(arguments: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A company in processes of its own; yields (host, port) once it serves."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    ctl = [sys.executable, "-m", "tools.actorctl.main"]
    command = [*ctl, "serve", *arguments, "--name", name, "--port", "0", "--log-level", "warning"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while True:
            done = subprocess.run(
                [*ctl, "status", "--name", name, "-o", "json"], capture_output=True, check=False
            )
            if done.returncode == 0:
                break
            if process.poll() is not None:
                raise click.ClickException(f"the company ended with {process.returncode}")
            time.sleep(0.2)
        status = json.loads(done.stdout)
        _warm_up(status["url"])
        yield status["host"], status["port"]
    finally:
        process.terminate()
        process.wait()


def _warm_up(url: str) -> None:
    with urllib.request.urlopen(f"{url}/health_generate", timeout=120) as answer:
        answer.read()


def summary(receipts: Sequence[load.Receipt], seconds: float) -> dict[str, float]:
    """Rates and latencies of one run; raises ClickException when a request failed."""
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


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as Markdown: medians with the range of the rounds."""
    rounds = figures["rounds"]
    columns = ("requests_per_s", "tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")
    titles = ("req/s", "tok/s", "TTFT p50 ms", "TTFT p99 ms", "ITL p50 ms", "ITL p99 ms")
    lines = [f"| over | {' | '.join(titles)} | served ÷ bare |", "|---" * (len(titles) + 2) + "|"]
    for name in _CLIENTS:
        cells = [str(spread([round_[name][column] for round_ in rounds])) for column in columns]
        ratio: Spread = spread([round_[name]["tokens_per_s"] / round_["bare"] for round_ in rounds])
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio} |")
    rates = spread([round_["bare"] for round_ in rounds])
    lines.append(f"\nbare executor: {rates} tok/s; {number(figures['clients'])} clients, medians (low–high)")
    return lines
