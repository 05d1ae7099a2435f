"""Rings beside pyzmq `ipc://`: messages a second one way, and round-trip times, across two processes.

`tools.bench.transports` says what each form is. Repetitions are interleaved and every ratio is taken within
one repetition, because machines drift; a figure is the median with the smallest and largest. A one-way
figure ends with the last decode. Processor time counts both processes with all their threads.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tools.bench.statistics import percentile, spread
from tools.bench.transports import PLAIN, Sample, measure, message_of

SIZES = {"64 B": 64, "256 B": 256, "1 KiB": 1024, "4 KiB": 4096, "64 KiB": 65536}
ONE_WAY = (*PLAIN, "ring", "zmq", "ring x16", "zmq x16")
ROUND_TRIP = (*PLAIN, "ring", "zmq", "zmq in trio")
PLAIN_RATIOS = (("bytes ring", "bytes zmq"), ("bytes ring", "bytes zmq uncopied"))
RATIOS = (*PLAIN_RATIOS, ("ring", "zmq"), ("ring x16", "zmq x16"), ("ring x16", "zmq"))
TRIP_RATIOS = (*PLAIN_RATIOS, ("ring", "zmq"), ("ring", "zmq in trio"))
TRIPS = {"echo": "at once", "rare": "to a sleeper"}
"""Round trips by role."""

Runs = dict[str, list[Sample]]
"""Samples of one size and role by form, one for each repetition."""


def run(size: int, role: str, forms: Iterable[str], n: int, repetitions: int) -> Runs:
    """All forms in turn, `repetitions` times over."""
    message = message_of(size)
    runs: Runs = {form: [] for form in forms}
    for _ in range(repetitions):
        for form, samples in runs.items():
            samples.append(measure(form, role, message, n))
    return runs


def rate(sample: Sample, n: int) -> float:
    """Messages a second of a one-way sample."""
    return n / sample.nanoseconds[0] * 1e9


def microseconds(sample: Sample, share: float) -> float:
    """A percentile of a sample's round trips."""
    return percentile(sample.nanoseconds, share) / 1e3


def figures(runs: Runs, figure: Callable[[Sample], float]) -> dict[str, list[float]]:
    """One number a sample."""
    return {form: [figure(sample) for sample in samples] for form, samples in runs.items()}


def ratios(values: dict[str, list[float]], pairs: Iterable[tuple[str, str]]) -> dict[str, list[float]]:
    """Ratio of two forms within each repetition."""
    return {
        f"{ours} / {theirs}": [a / b for a, b in zip(values[ours], values[theirs], strict=True)]
        for ours, theirs in pairs
    }


def main(
    messages: int = 100_000, trips: int = 4_000, repetitions: int = 5, sizes: Iterable[str] = tuple(SIZES)
) -> dict[str, Any]:
    """Measure, print the tables, return the numbers."""
    result: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(f"{result['cores']} cores, load {result['load']:.2f} at the start, {repetitions} repetitions\n")
    for name in sizes:
        size = SIZES[name]
        n = messages * 1024 // max(size, 1024) // 16 * 16
        one_way = run(size, "sink", ONE_WAY, n, repetitions)
        rates = figures(one_way, partial(rate, n=n))
        result[f"one way {name}"] = _show(f"{name} one way, messages/s", rates, ratios(rates, RATIOS))
        cpu = figures(one_way, lambda sample: sample.cpu / 1e3)
        result[f"cpu {name}"] = _show(f"{name} one way, processor µs a message", cpu, ratios(cpu, RATIOS))
        for role, how in TRIPS.items():
            round_trip = run(size, role, ROUND_TRIP, trips if role == "echo" else trips // 20, repetitions)
            for share in (0.5, 0.99):
                times = figures(round_trip, partial(microseconds, share=share))
                title = f"{name} round trip {how} p{share * 100:.0f}, µs"
                result[title] = _show(title, times, ratios(times, TRIP_RATIOS))
    return result


def _show(
    title: str, values: dict[str, list[float]], compared: dict[str, list[float]]
) -> dict[str, list[float]]:
    print(title)
    for form, numbers in values.items():
        print(f"  {form:<32}{spread(numbers)}")
    for pair, numbers in compared.items():
        print(f"  {pair:<32}x {spread(numbers)}")
    print(flush=True)
    return values | compared


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--trips", type=int, default=4_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, action="append", help="of all by default")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    numbers = main(options.messages, options.trips, options.repetitions, options.size or SIZES)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2))
