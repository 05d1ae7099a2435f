"""`python -m tools.attack disconnects`: clients vanish at random offsets, in request or answer.

Rounds of clients: each sends a part of a request or all of it, reads some bytes, and is gone, by an orderly
end or by a reset. From the last one's end on the company is looked at until it holds no request and no page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import socket
import struct
import sys
import time
from typing import Any

import click
import trio

from tools.attack import frames
from tools.attack.watch import Watch
from tools.bench.statistics import percentile
from tools.chaos import load
from tools.chaos.company import Company, company, holdings

TOKENS = 200
BYTES = 4_000
"""Of an answer, that a client reads at most; the whole is longer."""
CROWDED = 16
"""Each so many rounds neighbours are served meanwhile, and their answers checked; the others are timed."""
NEIGHBOURS = 4
MAX_OPEN = 256
PATIENCE = 30.0
_RESET = struct.pack("ii", 1, 0)


@dataclasses.dataclass
class Departures:
    """A run's result. freed: seconds from the last client's end to an idle company, for each timed round;
    reset, in_request, in_answer: clients by how and where they vanished."""

    gone: int = 0
    reset: int = 0
    in_request: int = 0
    in_answer: int = 0
    seconds: float = 0.0
    freed: list[float] = dataclasses.field(default_factory=list)
    checked: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is wrong and nothing is left."""
        return not (self.bad or self.left)

    def lines(self) -> list[str]:
        """The report as Markdown."""
        freed = [1e3 * percentile(self.freed, share) for share in (0.5, 0.99, 1.0)]
        rows: list[tuple[str, object]] = [
            ("disconnects", f"{self.gone:,} in {self.seconds:.0f} s"),
            ("in the request, in the answer", f"{self.in_request:,}, {self.in_answer:,}"),
            ("by a reset", f"{self.reset:,}"),
            (
                "last disconnect of a round → no page owned, ms",
                "p50 {:.0f}, p99 {:.0f}, max {:.0f}".format(*freed),
            ),
            ("rounds timed", f"{len(self.freed):,}"),
            ("neighbours' answers checked, not as in peace", f"{self.checked:,}, {len(self.bad)}"),
            ("left behind", len(self.left)),
        ]
        table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        return [*table, "", *(f"- {what}" for what in (*self.bad[:20], *self.left[:20]))]


async def vanish(subject: Company, rng: random.Random, found: Departures) -> None:
    """One client."""
    data = _request(rng, subject.model)
    cut = rng.randrange(len(data)) if rng.random() < 0.2 else len(data)
    wanted = rng.randrange(BYTES)
    stream = await trio.open_tcp_stream(subject.host, subject.port)
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(data[:cut])
        while cut == len(data) and wanted > 0:
            wanted -= len(await stream.receive_some(wanted)) or wanted
    resets = rng.random() < 0.5
    if resets:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with trio.CancelScope(shield=True):
        await stream.aclose()
    found.gone += 1
    found.reset += resets
    found.in_request += cut < len(data)
    found.in_answer += cut == len(data)


def _request(rng: random.Random, model: str) -> bytes:
    """A long answer over HTTP or a WebSocket; every prompt is new."""
    text = f"{rng.getrandbits(64)} " + "word " * rng.randrange(20)
    long: dict[str, Any] = {"model": model, "ignore_eos": True, "stream": True, "store": False}
    match rng.randrange(3):
        case 0:
            return _post("/v1/responses", long | {"input": text, "max_output_tokens": TOKENS})
        case 1:
            messages = [{"role": "user", "content": text}]
            return _post("/v1/chat/completions", long | {"messages": messages, "max_tokens": TOKENS, "n": 2})
        case _:
            event = long | {"type": "response.create", "input": text, "max_output_tokens": TOKENS}
            return frames.HANDSHAKE + frames.frame(frames.TEXT, json.dumps(event).encode())


def _post(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(data), data)


async def play(subject: Company, *, count: int, seconds: float, clients: int, seed: int) -> Departures:
    """Rounds of `clients` until `count` are gone or `seconds` are over."""
    found, watch, rng = Departures(), Watch(subject, MAX_OPEN), random.Random(seed)
    asked = load.asks(subject.model, NEIGHBOURS, 60, seed)
    peace = await load.in_peace(subject, asked)
    await watch.begin()
    began, rounds = time.monotonic(), 0

    async def leave() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(vanish, subject, random.Random(rng.getrandbits(64)), found)

    while found.gone < count and time.monotonic() - began < seconds:
        rounds += 1
        if rounds % CROWDED == 0:
            receipts = await load.under_fire(subject, asked, NEIGHBOURS, leave)
            found.checked += len(receipts)
            found.bad += [f"request {v.index}: {v.what}" for v in load.verdicts(receipts, peace)]
            await _idle(subject)
            watch.sample(found.gone)
        else:
            await leave()
            found.freed.append(await _idle(subject))
    found.seconds = time.monotonic() - began
    found.left = await watch.end()
    return found


async def _idle(subject: Company) -> float:
    """Seconds until the company holds no request and no page; infinity where that does not come."""
    began = trio.current_time()
    while trio.current_time() < began + PATIENCE:
        status = await subject.status()
        if not any(holdings(actor) for actor in status["actors"] if actor["kind"] == "scheduler"):
            return trio.current_time() - began
        await trio.sleep(0.002)
    return float("inf")


@click.command()
@click.option("--count", default=100_000, show_default=True)
@click.option("--seconds", default=float("inf"), help="End after so many, however many are gone.")
@click.option("--clients", default=32, show_default=True, help="Clients of a round.")
@click.option("--step-ms", default=1.0, show_default=True, help="Time of a step of the hash executor.")
@click.option("--seed", default=0, show_default=True)
def disconnects(step_ms: float, **run: Any) -> None:
    """Let clients vanish. Exits 1 unless everything that they held is free again and nobody else noticed."""
    options = ["--executor", "hash", "--step-ms", str(step_ms), "--max-open", str(MAX_OPEN)]

    async def main(subject: Company) -> Departures:
        await subject.ready()
        return await play(subject, **run)

    with company(options) as subject:
        found = trio.run(main, subject)
        found.left += subject.end()
    click.echo("\n".join(found.lines()))
    sys.exit(not found.clean)
