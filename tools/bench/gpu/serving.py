"""A company on this device: served beside bare, with and without the prefix cache, and killed."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import torch

from runtime import admin
from tools.bench import load, serve
from tools.bench.gpu.driver import Driver, Request
from tools.bench.gpu.measure import Subject
from tools.bench.statistics import percentile

_TOKENS = 1024
"""Of each stream that a kill interrupts."""
_UNDERSTUDY_SECONDS = 5.0
"""Until the next understudy waits."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """clients: of WebSockets; each asks `turns` times, for `output` tokens behind `words` words. kills: of
    the executor. options: of `actorctl serve`."""

    clients: int
    turns: int
    words: int
    output: int
    kills: int
    options: tuple[str, ...] = ()


FULL = Sizes(64, 3, 40, 256, 3)
SMALLEST = Sizes(3, 1, 4, 12, 1, ("--kernels", "torch", "--pages", "256", "--max-running", "8"))


def bare(subject: Subject, sizes: Sizes, prompt: int) -> float:
    """Output tokens a second of the executor alone, on as many requests at a time, of as many tokens."""
    prompt = min(prompt, subject.config.model.context - sizes.output - 2)
    asked = [Request([7] * prompt, sizes.output) for _ in range(sizes.clients * sizes.turns)]
    with subject.executor(max_running=sizes.clients, cuda_graphs="auto") as (executor, _):
        driver = Driver(executor, subject.config.chunk_size, 2)
        driver.run(asked[: sizes.clients])
        return len(asked) * sizes.output / driver.run(asked).seconds


def served(directory: pathlib.Path, device: torch.device, sizes: Sizes, *options: str) -> dict[str, Any]:
    """A company under load over WebSockets; the second of two runs."""
    prompts = serve.random_prompts(sizes.clients * sizes.turns, sizes.words)
    workload = load.Workload("bench", sizes.clients, prompts, sizes.output)
    with serve.company(_arguments(directory, device, sizes, *options)) as address:
        first = load.run(address.host, address.port, workload, load.SocketDialogue)
        serve.summary(first)
        return serve.summary(load.run(address.host, address.port, workload, load.SocketDialogue))


def killed(directory: pathlib.Path, device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Seconds from `kill -9` of the executor to the next token of eight open streams, an understudy waiting;
    and how many streams came to their end with all their tokens."""
    waits: list[float] = []
    streams: list[_Stream] = []
    free = _free(device)
    with serve.company(_arguments(directory, device, sizes, "--burst-ms", "0")) as address:
        for kill in range(sizes.kills):
            if kill:
                time.sleep(_UNDERSTUDY_SECONDS)
            begun = threading.Semaphore(0)
            open_ = [_Stream(address, begun) for _ in range(8)]
            for stream in open_:
                stream.start()
            for _ in open_:
                begun.acquire(timeout=120)
            actors = admin.ask(address.control, {"verb": "status"})["actors"]
            pid = next(actor["pid"] for actor in actors if actor["name"] == "executor.0")
            at = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            for stream in open_:
                stream.join()
                waits += [arrival - at for arrival in stream.arrivals if arrival > at][:1]
            streams += open_
    if not waits:
        return {"failed": "no stream was open at a kill"}
    whole = all(stream.tokens == _TOKENS for stream in streams)
    times = {"p50": statistics.median(waits), "p99": percentile(waits, 0.99)}
    kept = free - _free(device)
    return times | {"streams": len(streams), "right": whole and kept < 64 << 20, "kept_bytes": kept}


def _free(device: torch.device) -> int:
    """Bytes of a GPU that nobody has."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


_BREAK = """
import sys, torch
x = torch.zeros(4, device=sys.argv[1])
print(x[torch.full((1,), 1 << 40, device=sys.argv[1])])
"""
"""An access that the device forbids; every call behind it fails."""


def broken(device: torch.device) -> dict[str, Any]:
    """A process whose device has gone ends by itself, as an executor would, and leaves the device to others
    with all of its memory."""
    if device.type != "cuda":
        return {"refused": "this is no GPU"}
    free, _ = torch.cuda.mem_get_info(device)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _BREAK, str(device)], capture_output=True, timeout=120, check=False
    )
    seconds = time.perf_counter() - started
    works = float(torch.ones(3, device=device).sum()) == 3
    lost = free - torch.cuda.mem_get_info(device)[0]
    right = done.returncode != 0 and works and lost < 64 << 20
    return {"right": right, "code": done.returncode, "seconds": seconds, "lost_bytes": lost}


class _Stream(threading.Thread):
    """One streamed completion. begun: is released when its second piece has come, or it has ended."""

    def __init__(self, address: serve.Address, begun: threading.Semaphore) -> None:
        super().__init__(daemon=True)
        self._address, self._begun = address, begun
        self.arrivals: list[float] = []
        self.tokens = 0

    def run(self) -> None:
        """Ask, and note when each piece comes."""
        try:
            self._read()
        finally:
            self._begun.release()

    def _read(self) -> None:
        body = {
            "model": "bench",
            "prompt": "def f(x):",
            "max_tokens": _TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = http.client.HTTPConnection(self._address.host, self._address.port, timeout=300)
        with contextlib.closing(connection):
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
            )
            with connection.getresponse() as answer:
                for line in answer:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"data: {"):
            return
        event = json.loads(line[6:])
        if event.get("usage"):
            self.tokens = event["usage"]["completion_tokens"]
        self.arrivals.append(time.perf_counter())
        if len(self.arrivals) == 2:
            self._begun.release()


def _arguments(directory: pathlib.Path, device: torch.device, sizes: Sizes, *options: str) -> list[str]:
    shared = [
        "--served-name",
        "bench",
        "--device",
        str(device),
        "--dtype",
        "bfloat16",
        "--max-model-len",
        "4096",
    ]
    if device.type == "cuda":
        shared += ["--chunk-size", "8192"]
    running = [] if "--max-running" in sizes.options else ["--max-running", str(sizes.clients)]
    return [str(directory), *shared, *running, *sizes.options, *options]
