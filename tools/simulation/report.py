"""What a simulation showed, in figures."""

from __future__ import annotations

import dataclasses

import numpy as np

from tools.simulation.cluster import Cluster


@dataclasses.dataclass(frozen=True)
class Report:
    """seconds: virtual time to the last token. throughput: output tokens a second. ttft, tpot, latency: (p50,
    p99) in milliseconds: time to first token, time for each further token, whole request. hit_rate: of the
    prompt tokens looked up, the share found in the prefix cache. imbalance: of the tokens held by each
    replica, maximum / mean, on average over the arrivals."""

    requests: int
    seconds: float
    throughput: float
    ttft: tuple[float, float]
    tpot: tuple[float, float]
    latency: tuple[float, float]
    hit_rate: float
    preemptions: int
    steps: int
    imbalance: float

    def __str__(self) -> str:
        return "\n".join(
            (
                f"requests          {self.requests}, every token as the oracle says",
                f"virtual seconds   {self.seconds:.2f}",
                f"throughput        {self.throughput:.0f} output tokens/s",
                f"TTFT              p50 {self.ttft[0]:.0f} ms   p99 {self.ttft[1]:.0f} ms",
                f"TPOT              p50 {self.tpot[0]:.2f} ms   p99 {self.tpot[1]:.2f} ms",
                f"latency           p50 {self.latency[0]:.0f} ms   p99 {self.latency[1]:.0f} ms",
                f"prefix hit rate   {self.hit_rate:.1%}",
                f"preemptions       {self.preemptions}",
                f"steps             {self.steps}",
            )
        )


def _percentiles(values: list[float]) -> tuple[float, float]:
    return tuple(float(p) for p in np.percentile(values, (50, 99)))  # type: ignore[return-value]


def report(cluster: Cluster) -> Report:
    """Figures of a cluster that has run."""
    lives = list(cluster.lives.values())
    loads = [replica.load for replica in cluster.replicas if replica.load is not None]
    seconds = max(life.ended for life in lives) - min(life.arrived for life in lives)
    query = sum(load.query_tokens for load in loads)
    several = [life for life in lives if len(life.output) > 1] or lives
    return Report(
        requests=len(lives),
        seconds=seconds,
        throughput=sum(len(life.output) for life in lives) / seconds,
        ttft=_percentiles([(life.first - life.arrived) * 1000 for life in lives]),
        tpot=_percentiles(
            [(life.ended - life.first) * 1000 / max(len(life.output) - 1, 1) for life in several]
        ),
        latency=_percentiles([(life.ended - life.arrived) * 1000 for life in lives]),
        hit_rate=sum(load.cached_tokens for load in loads) / max(query, 1),
        preemptions=sum(load.preemptions for load in loads),
        steps=sum(load.steps for load in loads),
        imbalance=float(np.mean(cluster.imbalance)) if cluster.imbalance else 1.0,
    )
