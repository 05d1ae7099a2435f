"""Requests for simulations: seeded arrivals, skewed lengths, shared prefixes."""

from __future__ import annotations

import dataclasses

import numpy as np

from protocols.messages import Submit
from protocols.sampling import SamplingParams

VOCAB = 32000


@dataclasses.dataclass(frozen=True)
class Workload:
    """What arrives. rate: requests a second (Poisson), 0 for all at once. prompt, output: median
    tokens. skew, output_skew: sigma of their log-normal lengths, 0 for all alike. longest: tokens of a
    prompt or an output at most. prefixes: number of system prompts, each `prefix` tokens, one of which
    comes before every prompt.
    """

    requests: int = 500
    rate: float = 20.0
    prompt: int = 256
    output: int = 128
    skew: float = 1.0
    output_skew: float = 0.7
    longest: int = 8192
    prefixes: int = 8
    prefix: int = 256
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Arrival:
    """A request, and the second at which it comes."""

    at: float
    submit: Submit


def _lengths(rng: np.random.Generator, median: int, skew: float, load: Workload) -> list[int]:
    drawn = rng.lognormal(np.log(median), skew, load.requests)
    return [int(length) for length in np.clip(drawn, 1, load.longest)]


def arrivals(load: Workload) -> list[Arrival]:
    """The requests of a workload in order of time; the same ones for the same workload."""
    rng = np.random.default_rng(load.seed)
    gaps = rng.exponential(1 / load.rate, load.requests) if load.rate else np.zeros(load.requests)
    heads = rng.integers(0, VOCAB, (max(load.prefixes, 1), load.prefix if load.prefixes else 0), np.int32)
    prompts = _lengths(rng, load.prompt, load.skew, load)
    outputs = _lengths(rng, load.output, load.output_skew, load)
    found = []
    for rid, at in enumerate(np.cumsum(gaps).tolist()):
        tail = rng.integers(0, VOCAB, prompts[rid], np.int32)
        tokens = heads[rng.integers(len(heads))].tobytes() + tail.tobytes()
        sampling = SamplingParams(seed=rid, max_tokens=outputs[rid])
        found.append(Arrival(at, Submit(rid, 0, 0, tokens, sampling)))
    return found
