"""A siege: the nemesis strikes at random while clients stream, until it has struck often enough."""

from __future__ import annotations

from typing import Any

import trio

from protocols.config import Speculate
from tools.chaos import checker, load
from tools.chaos.company import Company, company
from tools.chaos.nemesis import STOP_SECONDS, Nemesis
from tools.chaos.report import Report


def random_faults(
    *,
    oracle: str,
    model: str,
    step_ms: float,
    dp: int,
    victims: str,
    kinds: str,
    seed: int,
    speculate: str = Speculate.OFF.value,
    stops: tuple[float, float] = STOP_SECONDS,
    **run: Any,
) -> Report:
    """One run under the nemesis: peace first, then faults, then what is left. The arguments are the options
    of `main`; stops: shortest and longest in seconds."""
    options = ["--dp", str(dp), "--max-running", str(run["streams"]), "--speculate", speculate]
    if oracle == "hash":
        options += ["--executor", "hash", "--step-ms", str(step_ms)]
    else:
        options += ["--dtype", "float32"]
    weights = {name: float(weight) for name, _, weight in (kind.partition("=") for kind in kinds.split(","))}
    with company(options, model=model) as subject:
        nemesis = Nemesis(subject.address, victims.split(","), weights, run["interval"], seed, stops)
        report = trio.run(_run, subject, nemesis, seed, run)
        report.leaks.extend(subject.end())
    return report


async def _run(subject: Company, nemesis: Nemesis, seed: int, run: dict[str, Any]) -> Report:
    await subject.ready()
    asked = load.asks(subject.model, run["count"], run["tokens"], seed)
    peace = await load.in_peace(subject, asked)

    async def fire() -> None:
        await nemesis.run(run["faults"])

    receipts = await load.under_fire(subject, asked, run["streams"], fire)
    pauses = checker.recoveries(nemesis.log, receipts)
    return Report(nemesis.log, receipts, load.verdicts(receipts, peace), pauses)
