"""The whole company as data: who runs, who sends to whom, and what happens when one of them dies.

    frontend.i ──► tokenizer.j ──► [balancer] ──► scheduler.r ◄──► executor.r
    frontend.i ◄── tokenizer.j ◄───────────────── scheduler.r

An actor that dies is replaced alone: what its successor needs lies in the ledger and on the board, and
a scheduler learns of its executor's new incarnation by mail (`ExecutorReady`). Each kind has one understudy,
a spare process that has imported what the kind needs, so that a return takes no longer than its work.
"""

from __future__ import annotations

from actors.control.table import VERBS
from actors.sizes import least_ring_bytes
from protocols.config import Config
from protocols.errors import StartError
from runtime.tree import Child, Company, Group, Strategy

_LOADING_SECONDS = 1800.0
"""An executor may read a large model for this long before it counts as hung."""

_STEP_SECONDS = 120.0
"""One forward step, of the largest chunk on the slowest machine."""


def company(config: Config) -> Company:
    """The supervision tree that `config` asks for. StartError where its mail would not fit its rings."""
    least = least_ring_bytes(config)
    if config.ring_bytes < least:
        raise StartError(f"ring_bytes is {config.ring_bytes}, but these options need at least {least}.")
    return Company(
        config,
        Group(
            "company",
            Strategy.ONE_FOR_ONE,
            (
                Group("replicas", Strategy.ONE_FOR_ONE, _replicas(config)),
                Group("edge", Strategy.ONE_FOR_ONE, (*_tokenizers(config), *_frontends(config))),
            ),
        ),
        VERBS,
    )


def _replicas(config: Config) -> tuple[Child | Group, ...]:
    replicas = tuple(
        Group(f"replica.{r}", Strategy.ONE_FOR_ONE, (_executor(r), _scheduler(config, r)))
        for r in range(config.dp)
    )
    return (*replicas, _balancer(config)) if config.dp > 1 else replicas


def _executor(r: int) -> Child:
    return Child(
        f"executor.{r}",
        "executor",
        "actors.executor:run",
        index=r,
        understudy="executor",
        sends=(f"scheduler.{r}",),
        ready_seconds=_LOADING_SECONDS,
        busy_seconds=_STEP_SECONDS,
    )


def _scheduler(config: Config, r: int) -> Child:
    return Child(
        f"scheduler.{r}",
        "scheduler",
        "actors.scheduler.actor:run",
        index=r,
        understudy="scheduler",
        sends=(f"executor.{r}", *_names("tokenizer", config.tokenizers)),
    )


def _balancer(config: Config) -> Child:
    sends = _names("scheduler", config.dp)
    return Child("balancer", "balancer", "actors.balancer:run", understudy="balancer", sends=sends)


def _tokenizers(config: Config) -> tuple[Child, ...]:
    down = ("balancer",) if config.dp > 1 else ("scheduler.0",)
    sends = (*down, *_names("frontend", config.frontends))
    return tuple(
        Child(
            f"tokenizer.{i}",
            "tokenizer",
            "actors.tokenizer.actor:run",
            index=i,
            understudy="tokenizer",
            sends=sends,
        )
        for i in range(config.tokenizers)
    )


def _frontends(config: Config) -> tuple[Child, ...]:
    sends = _names("tokenizer", config.tokenizers)
    return tuple(
        Child(
            f"frontend.{i}",
            "frontend",
            "actors.frontend.actor:run",
            index=i,
            understudy="frontend",
            stage=1,
            sends=sends,
            listens=True,
        )
        for i in range(config.frontends)
    )


def _names(kind: str, count: int) -> tuple[str, ...]:
    return tuple(f"{kind}.{i}" for i in range(count))
