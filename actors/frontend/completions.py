"""`/v1/completions`."""

from __future__ import annotations

import functools
import math

import msgspec

from actors.frontend import parameters, prompts
from actors.frontend.choices import AnswerHead, answer, check
from actors.frontend.jobs import Job
from actors.frontend.rules import rules_of
from actors.frontend.service import Service, read
from actors.frontend.text import FINISH_REASONS, Collector, Pending, usage_document
from protocols.messages import TextLogprob
from protocols.openai import completions
from protocols.openai.completions import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionChoice,
    CompletionRequest,
    TextLogprobs,
)
from protocols.openai.logprobs import finite, prompt_logprobs
from runtime.exchange import Exchange

_decoder = msgspec.json.Decoder(CompletionRequest)


class TextDialect:
    """How completions word their chunks."""

    kind = "text_completion"
    prefix = "cmpl-"
    after = b',"logprobs":'

    def opening(self, index: int) -> bytes:
        """There is none."""
        return b""

    def before(self, index: int) -> bytes:
        """Up to the text."""
        return b'{"index":%d,"text":' % index

    def logprobs(self, entries: list[TextLogprob], characters: int) -> bytes:
        """Of the tokens of a piece."""
        return msgspec.json.encode(_logprobs(entries, characters))

    def last(self, index: int) -> bytes:
        """Up to the finish reason."""
        return b'{"index":%d,"text":"","logprobs":null,"finish_reason":' % index

    def writer(self) -> None:
        """The text is what it is."""


async def create(service: Service, exchange: Exchange) -> None:
    """Answer `POST /v1/completions`."""
    request = await read(_decoder, await exchange.body())
    job = completion_job(request, service, service.trace_of(exchange))
    document = functools.partial(_document, request)
    await answer(service, exchange, request, job, TextDialect(), document)


def completion_job(request: CompletionRequest, service: Service, trace: str) -> Job:
    """The validated job; raises UserError."""
    adapter = service.adapters.find(request.model, request.lora_path)
    n = check(request, completions.NEUTRAL)
    read = (request.prompt_logprobs, request.logprobs if request.echo else None)
    return parameters.job(
        request,
        prompts.plain_prompts(request.prompt, service.model.vocab_size),
        service.model.vocab_size,
        max_tokens=request.max_tokens,
        logprobs=request.logprobs,
        names={},
        trace=trace,
        n=n,
        echo=bool(request.echo),
        prompt_logprobs=max((top for top in read if top is not None), default=None),
        least=0,
        default_tokens=DEFAULT_MAX_TOKENS,
        rules=rules_of(request, request.response_format),
        adapter=adapter,
    )


def _document(request: CompletionRequest, head: AnswerHead, collector: Collector) -> Completion:
    return Completion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[_choice(request, index, pending) for index, pending in enumerate(collector.pending)],
        usage=usage_document(collector.meter.total()),
    )


def _logprobs(entries: list[TextLogprob], characters: int, top: int | None = None) -> TextLogprobs:
    offsets: list[int] = []
    for entry in entries:
        offsets.append(characters)
        characters += len(entry.token[0])
    return TextLogprobs(
        tokens=[entry.token[0] for entry in entries],
        token_logprobs=[None if math.isnan(entry.token[2]) else finite(entry.token[2]) for entry in entries],
        top_logprobs=[
            None
            if math.isnan(entry.token[2])
            else {text: finite(value) for text, _, value in entry.top[:top]}
            for entry in entries
        ],
        text_offset=offsets,
    )


def _choice(request: CompletionRequest, index: int, pending: Pending) -> CompletionChoice:
    entries, top = [*(pending.prompt_logprobs if request.echo else ()), *pending.logprobs], request.logprobs
    read = request.prompt_logprobs
    return CompletionChoice(
        index=index,
        logprobs=_logprobs(entries, 0, top) if entries and top is not None else None,
        prompt_logprobs=msgspec.UNSET if read is None else prompt_logprobs(pending.prompt_logprobs, read),
        prompt_token_ids=list(pending.prompt_ids) or msgspec.UNSET,
        token_ids=list(pending.token_ids) if pending.token_ids else msgspec.UNSET,
        text=pending.take(),
        finish_reason=FINISH_REASONS[pending.finish],
        stop_reason=pending.stop,
        weight_versions=pending.weights or msgspec.UNSET,
    )
