"""What chat and completions share: answers of several choices, streamed in chunks or sent whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec

from actors.frontend import delivery, parameters
from actors.frontend.chunks import ChunkStream, Dialect
from actors.frontend.jobs import Job
from actors.frontend.service import Service, now
from actors.frontend.text import Collector, Pending
from protocols.errors import UserError
from protocols.openai.generation import ChoicesFields
from runtime.exchange import Exchange

MAX_CHOICES = 128


@dataclasses.dataclass(frozen=True)
class AnswerHead:
    """What every document of one answer repeats."""

    id: str
    created: int
    model: str


def check(request: ChoicesFields, neutral: dict[str, tuple[Any, ...]]) -> int:
    """Validate what the endpoints share; returns the number of choices to make. Raises UserError."""
    parameters.check_served(request, neutral)
    if request.stream_options is not None and not request.stream:
        raise UserError("stream_options may only be set with stream.", param="stream_options")
    n = 1 if request.n is None else request.n
    if not 1 <= n <= MAX_CHOICES:
        raise UserError(f"n must be between 1 and {MAX_CHOICES}, not {n}.", param="n")
    best_of = n if request.best_of is None else request.best_of
    if not n <= best_of <= MAX_CHOICES:
        raise UserError(f"best_of must be between n and {MAX_CHOICES}, not {best_of}.", param="best_of")
    if best_of > n and request.stream:
        raise UserError("best_of above n cannot be streamed: the best is known at the end.", param="best_of")
    if request.prompt_logprobs is not None and request.stream:
        raise UserError("prompt_logprobs cannot be streamed.", param="prompt_logprobs")
    return best_of


async def answer(
    service: Service,
    exchange: Exchange,
    request: ChoicesFields,
    job: Job,
    dialect: Dialect,
    document: Callable[[AnswerHead, Collector], msgspec.Struct],
) -> None:
    """Run the job and answer, as a stream where the request asks for it."""
    head = AnswerHead(dialect.prefix + exchange.id[-32:], now(), service.title(job))
    choices = len(job.prompts) * job.n
    if request.stream:
        await delivery.stream(exchange, service.engine, job, _source(request, head, dialect, choices, job.n))
        return
    if request.best_of is not None and job.sampling.logprobs is None:
        job = dataclasses.replace(job, sampling=msgspec.structs.replace(job.sampling, logprobs=0))
    collector = Collector(choices, job.n)
    await delivery.collect(service.engine, job, collector)
    if request.best_of is not None:
        _keep_best(collector, job.n, request.n or 1)
    await exchange.respond(200, msgspec.json.encode(document(head, collector)))


def _keep_best(collector: Collector, made: int, n: int) -> None:
    """Keep, of the `made` choices of each prompt, the `n` with the highest mean logprob, best first."""
    groups = [collector.pending[i : i + made] for i in range(0, len(collector.pending), made)]
    collector.pending = [best for group in groups for best in sorted(group, key=_unlikeliness)[:n]]


def _unlikeliness(pending: Pending) -> float:
    values = [entry.token[2] for entry in pending.logprobs]
    return -sum(values) / len(values) if values else 0.0


def _source(request: ChoicesFields, head: AnswerHead, dialect: Dialect, choices: int, n: int) -> ChunkStream:
    options = request.stream_options
    usage = options is not None and bool(options.include_usage)
    return ChunkStream(
        dialect,
        id=head.id,
        created=head.created,
        model=head.model,
        choices=choices,
        n=n,
        include_usage=usage,
        continuous_usage=usage and options is not None and bool(options.continuous_usage_stats),
    )
