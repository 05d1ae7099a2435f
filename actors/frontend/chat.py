"""`/v1/chat/completions`."""

from __future__ import annotations

import functools

import msgspec

from actors.frontend import parameters, prompts
from actors.frontend.choices import AnswerHead, answer, check
from actors.frontend.engine import Job
from actors.frontend.service import Service, read, trace_of
from actors.frontend.text import FINISH_REASONS, Collector, Pending, usage_document
from protocols.errors import UserError
from protocols.messages import TextLogprob
from protocols.openai import chat
from protocols.openai.chat import AnswerMessage, ChatChoice, ChatCompletion, ChatRequest, ChoiceLogprobs
from protocols.openai.logprobs import prompt_logprobs, token_logprob
from protocols.request import ChatPrompt
from runtime.http import Exchange

_decoder = msgspec.json.Decoder(ChatRequest)


class ChatDialect:
    """How chat words its chunks."""

    kind = "chat.completion.chunk"
    prefix = "chatcmpl-"
    after = b'},"logprobs":'

    def opening(self, index: int) -> bytes:
        """The role, with empty content."""
        delta = b'{"role":"assistant","content":""}'
        return b'{"index":%d,"delta":%b,"logprobs":null,"finish_reason":null}' % (index, delta)

    def before(self, index: int) -> bytes:
        """Up to the text."""
        return b'{"index":%d,"delta":{"content":' % index

    def logprobs(self, entries: list[TextLogprob], characters: int) -> bytes:
        """Of the tokens of a piece."""
        return msgspec.json.encode(_logprobs(entries))

    def last(self, index: int) -> bytes:
        """Up to the finish reason."""
        return b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":' % index


async def create(service: Service, exchange: Exchange) -> None:
    """Answer `POST /v1/chat/completions`."""
    request = await read(_decoder, await exchange.body())
    job = chat_job(request, service, trace_of(exchange))
    document = functools.partial(_document, request)
    await answer(service, exchange, request, job, ChatDialect(), document)


def chat_job(request: ChatRequest, service: Service, trace: str) -> Job:
    """The validated job; raises UserError."""
    n = check(request, service.model, chat.NEUTRAL)
    names, max_tokens = {"logprobs": "top_logprobs"}, request.max_tokens
    if request.max_completion_tokens is not None:
        names["max_tokens"], max_tokens = "max_completion_tokens", request.max_completion_tokens
    return parameters.job(
        request,
        (prompt_of(request),),
        service.model.vocab_size,
        max_tokens=max_tokens,
        logprobs=parameters.top_logprobs(bool(request.logprobs), request.top_logprobs),
        names=names,
        trace=trace,
        n=n,
        prompt_logprobs=request.prompt_logprobs,
    )


def prompt_of(request: ChatRequest) -> ChatPrompt:
    """What the chat template is given; raises UserError."""
    arguments = dict(request.chat_template_kwargs or {})
    continue_final = bool(request.continue_final_message)
    if continue_final and request.add_generation_prompt:
        raise UserError(
            "continue_final_message and add_generation_prompt exclude each other.",
            param="continue_final_message",
        )
    if request.add_generation_prompt is False:
        arguments["add_generation_prompt"] = False
    if request.reasoning_effort is not None:
        arguments.setdefault("reasoning_effort", request.reasoning_effort)
    return prompts.chat_prompt(
        [prompts.template_message(m, f"messages[{i}]") for i, m in enumerate(request.messages)],
        tools=request.tools if prompts.offers_tools(request.tool_choice) else None,
        arguments=arguments,
        continue_final=continue_final,
    )


def _document(request: ChatRequest, head: AnswerHead, collector: Collector) -> ChatCompletion:
    read, top = collector.pending[0], request.prompt_logprobs
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        usage=usage_document(collector.meter.total()),
        prompt_logprobs=msgspec.UNSET if top is None else prompt_logprobs(read.prompt_logprobs, top),
        prompt_token_ids=list(read.prompt_ids) or msgspec.UNSET,
        choices=[_choice(request, index, pending) for index, pending in enumerate(collector.pending)],
    )


def _logprobs(entries: list[TextLogprob]) -> ChoiceLogprobs:
    return ChoiceLogprobs([token_logprob(entry) for entry in entries])


def _choice(request: ChatRequest, index: int, pending: Pending) -> ChatChoice:
    return ChatChoice(
        index=index,
        logprobs=_logprobs(pending.logprobs) if pending.logprobs and request.logprobs else None,
        token_ids=list(pending.token_ids) if pending.token_ids else msgspec.UNSET,
        message=AnswerMessage(pending.take()),
        finish_reason=FINISH_REASONS[pending.finish],
        stop_reason=pending.stop,
    )
