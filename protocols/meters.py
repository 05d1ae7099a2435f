"""What actors measure beside the board: histograms and counters, each a run of u64 words with one writer.

A histogram has a word for each bucket, one for what is beyond the last bound, and one for the sum. The words
lie in the actor's black box, which outlives it, so they count over all its incarnations. Times are
nanoseconds. The names are vLLM's.
"""

from __future__ import annotations

import dataclasses
import enum


@dataclasses.dataclass(frozen=True)
class Histogram:
    """first: index of its first word. bounds: upper ends of the buckets, ascending. unit: raw values in
    one of what is exported."""

    name: str
    text: str
    kind: str
    first: int
    bounds: tuple[int, ...]
    unit: float = 1e9

    @property
    def sum(self) -> int:
        """Index of the word with the sum of all values."""
        return self.first + len(self.bounds) + 1


def _times(*milliseconds: float) -> tuple[int, ...]:
    return tuple(int(each * 1e6) for each in milliseconds)


_FIRST = _times(
    *(1, 5, 10, 20, 40, 60, 80, 100, 250, 500, 750, 1e3, 2.5e3, 5e3, 7.5e3),
    *(1e4, 2e4, 4e4, 8e4, 16e4, 64e4, 256e4),
)
_BETWEEN = _times(
    *(0.5, 1, 2.5, 5, 10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 750),
    *(1e3, 2.5e3, 5e3, 7.5e3, 1e4, 2e4, 4e4, 8e4),
)
_WHOLE = _times(
    *(10, 50, 100, 300, 500, 800, 1e3, 1.5e3, 2e3, 2.5e3, 5e3, 1e4, 1.5e4),
    *(2e4, 3e4, 4e4, 5e4, 6e4, 12e4, 24e4, 48e4, 96e4, 192e4, 768e4),
)
_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

_ROOM = 32
"""Words between the beginnings of two histograms."""

TTFT = Histogram(
    "time_to_first_token_seconds", "From a request's arrival to its first token.", "frontend", 0, _FIRST
)
ITL = Histogram(
    "inter_token_latency_seconds",
    "Between two pieces of output of one choice, where they leave.",
    "frontend",
    _ROOM,
    _BETWEEN,
)
E2E = Histogram(
    "e2e_request_latency_seconds", "From a request's arrival to its end.", "frontend", 2 * _ROOM, _WHOLE
)
QUEUE = Histogram(
    "request_queue_time_seconds",
    "From its arrival at the scheduler to the first step.",
    "scheduler",
    3 * _ROOM,
    _WHOLE,
)
PREFILL = Histogram(
    "request_prefill_time_seconds",
    "From the first step to the first token.",
    "scheduler",
    4 * _ROOM,
    _WHOLE,
)
DECODE = Histogram(
    "request_decode_time_seconds", "From the first token to the last.", "scheduler", 5 * _ROOM, _WHOLE
)
ITERATION = Histogram(
    "iteration_tokens_total", "Tokens of a step, prefill and decode.", "scheduler", 6 * _ROOM, _TOKENS, 1.0
)
HISTOGRAMS = (TTFT, ITL, E2E, QUEUE, PREFILL, DECODE, ITERATION)


class Count(enum.IntEnum):
    """Index of a counter's word. The frontend's: choices by how they ended. The scheduler's: REPLAYED, tokens
    computed once more for sequences that were retracted, or lost with an executor or a scheduler."""

    STOP = 8 * _ROOM
    LENGTH = 8 * _ROOM + 1
    ABORT = 8 * _ROOM + 2
    ERROR = 8 * _ROOM + 3
    REPLAYED = 8 * _ROOM + 4


NAMED = 16
"""Adapters in a list at most."""


class Named(enum.IntEnum):
    """Index of the first word of a list of adapters' ids, 0 behind the last: those through which requests
    run on a scheduler, and those through which they wait there."""

    RUNNING = 9 * _ROOM
    WAITING = 9 * _ROOM + NAMED


METER_WORDS = 10 * _ROOM
