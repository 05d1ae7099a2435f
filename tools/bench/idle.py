"""`python -m tools.bench idle`: what WebSockets that do nothing cost, in memory and for those that stream.

One company; each round streams over WebSockets without idle ones and with them, each first in its turn. The
idle ones ping every 20 seconds, as clients of OpenAI's do, each at its own time, from a process of their own:
one that measures has nothing else to do. Percentiles are of all rounds together, since a single round has
too few first tokens for a 99th, and without each client's first request, when all ask at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import pathlib
import socket
import statistics
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import click

from tools.actorctl.serve import DEMO_MODEL
from tools.bench import load
from tools.bench.serve import company, random_prompts, summary
from tools.bench.statistics import number, percentile
from tools.chaos import traces

PING_SECONDS = 20.0
_PING = b"\x89\x80" + bytes(4)
_COLUMNS = ("tok/s", "TTFT p50 ms", "TTFT p99 ms", "ITL p99 ms")


@contextlib.contextmanager
def idle_sockets(host: str, port: int, count: int) -> Iterator[None]:
    """`count` open WebSockets that only ping."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_rest, args=(host, port, count, theirs))
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield
        ours.send(None)
    finally:
        ours.close()
        process.join()


def _rest(host: str, port: int, count: int, parent: Connection) -> None:
    """Tell when all are open; ping until something comes, or the parent is gone."""
    sockets = [_open(host, port) for _ in range(count)]
    parent.send(None)
    for sock in itertools.cycle(sockets):
        if parent.poll(PING_SECONDS / count):
            return
        sock.sendall(_PING)
        sock.recv(1 << 16)


def _open(host: str, port: int) -> socket.socket:
    sock = socket.create_connection((host, port))
    sock.sendall(load.SocketDialogue().greeting(host))
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(1 << 16)
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise click.ClickException(f"no WebSocket: {answer.decode(errors='replace')}")
    return sock


@dataclasses.dataclass
class Figures:
    """Of all rounds: the runs without idle sockets and with them; the frontend's bytes for each."""

    without: list[load.Run] = dataclasses.field(default_factory=list)
    beside: list[load.Run] = dataclasses.field(default_factory=list)
    bytes: list[float] = dataclasses.field(default_factory=list)


def measure(
    model: pathlib.Path, *, count: int, clients: int, requests: int, output: int, repeats: int
) -> Figures:
    """Rounds, each with prompts that the prefix cache does not know."""
    figures = Figures()
    arguments = [str(model), "--served-name", "bench", "--max-running", str(clients)]
    with company(arguments) as address:
        frontend = address.pids["frontend.0"]

        def stream(seed: int) -> load.Run:
            workload = load.Workload("bench", clients, random_prompts(requests, 24, seed), output)
            return load.run(address.host, address.port, workload, load.SocketDialogue)

        stream(0)
        for round_ in range(repeats):
            if round_ % 2:
                figures.without.append(stream(2 * round_ + 1))
            before = traces.private(frontend)
            with idle_sockets(address.host, address.port, count):
                figures.bytes.append((traces.private(frontend) - before) / count)
                figures.beside.append(stream(2 * round_ + 2))
            if not round_ % 2:
                figures.without.append(stream(2 * round_ + 1))
    return figures


def row(runs: Sequence[load.Run], clients: int) -> list[float]:
    """What the columns tell of some runs together."""
    rates = [float(summary(run)["tokens_per_s"]) for run in runs]
    later = [run.receipts[at] for run in runs for at in _later(len(run.receipts), clients)]
    first = [receipt.first_token for receipt in later]
    gaps = [gap for receipt in later for gap in receipt.gaps]
    times = (percentile(first, 0.5), percentile(first, 0.99), percentile(gaps, 0.99))
    return [statistics.median(rates), *(1e3 * seconds for seconds in times)]


def _later(requests: int, clients: int) -> Iterator[int]:
    """Places of the receipts that are not a client's first: each client's stand one after the other."""
    place = 0
    for index in range(clients):
        mine = len(range(index, requests, clients))
        yield from range(place + 1, place + mine)
        place += mine


def table(figures: Figures, count: int, clients: int) -> list[str]:
    """The figures as Markdown, and what each half of the rounds alone would have said."""
    lines = [f"| idle WebSockets | {' | '.join(_COLUMNS)} |", "|---" * (len(_COLUMNS) + 1) + "|"]
    plain, beside = row(figures.without, clients), row(figures.beside, clients)
    for title, found in (("0", plain), (number(count), beside)):
        lines.append(f"| {title} | {' | '.join(map(number, found))} |")
    ratios = [number(a / b) for a, b in zip(beside, plain, strict=True)]
    lines.append(f"| with ÷ without | {' | '.join(ratios)} |")
    for name, half in (("even", slice(0, None, 2)), ("odd", slice(1, None, 2))):
        pair = zip(row(figures.beside[half], clients), row(figures.without[half], clients), strict=True)
        lines.append(f"| in {name} rounds alone | {' | '.join(number(a / b) for a, b in pair)} |")
    first = figures.bytes[0] / 1024
    return [*lines, "", f"the frontend's memory for each idle WebSocket: {first:.1f} KiB when they are new"]


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=pathlib.Path), default=DEMO_MODEL)
@click.option("--count", default=1000, show_default=True, help="Idle WebSockets.")
@click.option("--clients", default=64, show_default=True, help="Streams at once.")
@click.option("--requests", default=192, show_default=True, help="Requests of a run.")
@click.option("--output", default=64, show_default=True, help="Tokens of an answer.")
@click.option("--repeats", type=click.IntRange(min=2), default=10, show_default=True)
def idle(count: int, clients: int, **case: Any) -> None:
    """Idle WebSockets beside streaming ones."""
    for line in table(measure(count=count, clients=clients, **case), count, clients):
        click.echo(line)
