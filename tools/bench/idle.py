"""`python -m tools.bench idle`: what WebSockets that do nothing cost, in memory and for those that stream.

One company; each round streams over WebSockets without idle ones and with them, each first in its turn.
The idle ones ping every 20 seconds, as clients of OpenAI's do.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import click

from tools.actorctl.serve import DEMO_MODEL
from tools.background import background
from tools.bench import load
from tools.bench.serve import company, random_prompts, summary
from tools.bench.statistics import number, spread
from tools.chaos import traces

PING_SECONDS = 20.0
_PING = b"\x89\x80" + bytes(4)
_COLUMNS = {
    "tokens_per_s": "tok/s",
    "ttft_p99_ms": "TTFT p99 ms",
    "itl_p50_ms": "ITL p50 ms",
    "itl_p99_ms": "ITL p99 ms",
}


@contextlib.contextmanager
def idle_sockets(host: str, port: int, count: int) -> Iterator[None]:
    """`count` open WebSockets that only ping, each at its own time."""
    sockets = [_open(host, port) for _ in range(count)]

    def ping(over: threading.Event) -> None:
        while True:
            for sock in sockets:
                if over.wait(PING_SECONDS / count):
                    return
                sock.sendall(_PING)
                sock.recv(1 << 16)

    try:
        with background(ping):
            yield
    finally:
        for sock in sockets:
            sock.close()


def _open(host: str, port: int) -> socket.socket:
    sock = socket.create_connection((host, port))
    sock.sendall(load.SocketDialogue().greeting(host))
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(1 << 16)
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise click.ClickException(f"no WebSocket: {answer.decode(errors='replace')}")
    return sock


def measure(
    model: pathlib.Path, *, count: int, clients: int, requests: int, output: int, repeats: int
) -> dict[str, Any]:
    """Rounds of summaries "without" and "with", and "bytes": of the frontend, for each idle socket."""
    figures: dict[str, Any] = {"without": [], "with": [], "bytes": []}
    arguments = [str(model), "--served-name", "bench", "--max-running", str(clients)]
    workload = load.Workload("bench", clients, random_prompts(requests, 24), output)
    with company(arguments) as address:
        frontend = address.pids["frontend.0"]

        def stream(name: str) -> None:
            run = load.run(address.host, address.port, workload, load.SocketDialogue)
            figures[name].append(summary(run))

        load.run(address.host, address.port, workload, load.SocketDialogue)
        for round_ in range(repeats):
            if round_ % 2:
                stream("without")
            before = traces.private(frontend)
            with idle_sockets(address.host, address.port, count):
                figures["bytes"].append((traces.private(frontend) - before) / count)
                stream("with")
            if not round_ % 2:
                stream("without")
    return figures


def table(figures: dict[str, Any], count: int) -> list[str]:
    """The figures as Markdown: medians with the range of the rounds, and the ratio of each round."""
    lines = [f"| idle WebSockets | {' | '.join(_COLUMNS.values())} |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for title, name in (("0", "without"), (number(count), "with")):
        cells = [str(spread([each[column] for each in figures[name]])) for column in _COLUMNS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    pairs = list(zip(figures["with"], figures["without"], strict=True))
    ratios = [str(spread([a[column] / b[column] for a, b in pairs])) for column in _COLUMNS]
    lines.append(f"| with ÷ without | {' | '.join(ratios)} |")
    first = figures["bytes"][0] / 1024
    return [*lines, "", f"the frontend's memory for each idle WebSocket: {first:.1f} KiB when they are new"]


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=pathlib.Path), default=DEMO_MODEL)
@click.option("--count", default=1000, show_default=True, help="Idle WebSockets.")
@click.option("--clients", default=64, show_default=True, help="Streams at once.")
@click.option("--requests", default=192, show_default=True, help="Requests of a run.")
@click.option("--output", default=64, show_default=True, help="Tokens of an answer.")
@click.option("--repeats", default=5, show_default=True)
def idle(count: int, **case: Any) -> None:
    """Idle WebSockets beside streaming ones."""
    for line in table(measure(count=count, **case), count):
        click.echo(line)
