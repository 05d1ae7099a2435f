"""What chat and completions share: answers of several choices, streamed in chunks or sent whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec

from actors.frontend import delivery, parameters
from actors.frontend.chunks import ChunkStream, Dialect
from actors.frontend.engine import Job
from actors.frontend.service import Service, new_id, now
from actors.frontend.text import Collector
from protocols.config import ModelCard
from protocols.errors import UserError
from protocols.openai.generation import ChoicesFields
from runtime.http import Exchange

MAX_CHOICES = 128


@dataclasses.dataclass(frozen=True)
class AnswerHead:
    """What every document of one answer repeats."""

    id: str
    created: int
    model: str


def check(request: ChoicesFields, model: ModelCard, neutral: dict[str, tuple[Any, ...]]) -> int:
    """Validate what the endpoints share; returns the number of choices. Raises UserError."""
    parameters.check_model(request.model, model)
    parameters.check_served(request, neutral)
    if request.stream_options is not None and not request.stream:
        raise UserError("stream_options may only be set with stream.", param="stream_options")
    n = 1 if request.n is None else request.n
    if not 1 <= n <= MAX_CHOICES:
        raise UserError(f"n must be between 1 and {MAX_CHOICES}, not {n}.", param="n")
    if request.best_of is not None and request.best_of != n:
        raise UserError("best_of must equal n.", param="best_of", code="unsupported")
    return n


async def answer(
    service: Service,
    exchange: Exchange,
    request: ChoicesFields,
    job: Job,
    dialect: Dialect,
    document: Callable[[AnswerHead, Collector], msgspec.Struct],
) -> None:
    """Run the job and answer, as a stream where the request asks for it."""
    head = AnswerHead(new_id(dialect.prefix), now(), service.model.name)
    choices = len(job.prompts) * job.n
    if request.stream:
        await delivery.stream(exchange, service.engine, job, _source(request, head, dialect, choices, job.n))
        return
    collector = Collector(choices, job.n)
    await delivery.collect(service.engine, job, collector)
    await exchange.respond(200, msgspec.json.encode(document(head, collector)))


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
