"""`/v1/chat/completions`."""

from __future__ import annotations

import functools

import msgspec

from actors.frontend import parameters, prompts
from actors.frontend.answer_format import AnswerFormat, answer_format_of
from actors.frontend.chat_writer import ChatWriter
from actors.frontend.choices import AnswerHead, answer, check
from actors.frontend.jobs import Job
from actors.frontend.rules import rules_of
from actors.frontend.service import Service, read
from actors.frontend.text import Collector, Pending, finish_reason, usage_document
from protocols.config import Config
from protocols.errors import UserError
from protocols.messages import TextLogprob
from protocols.openai import chat
from protocols.openai.chat import ChatChoice, ChatCompletion, ChatRequest, ChoiceLogprobs
from protocols.openai.logprobs import prompt_logprobs, token_logprob
from protocols.request import ChatPrompt
from runtime.exchange import Exchange

_decoder = msgspec.json.Decoder(ChatRequest)


class ChatDialect:
    """How chat words its chunks. answer_format: what is looked for in its text."""

    kind = "chat.completion.chunk"
    prefix = "chatcmpl-"
    after = b'},"logprobs":'

    def __init__(self, answer_format: AnswerFormat) -> None:
        self._answer_format = answer_format

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

    def writer(self) -> ChatWriter | None:
        """Where there may be thoughts or calls."""
        return ChatWriter(self._answer_format) if self._answer_format else None


async def create(service: Service, exchange: Exchange) -> None:
    """Answer `POST /v1/chat/completions`."""
    request = await read(_decoder, await exchange.body())
    answer_format = _answer_format(request, service.config)
    job = chat_job(request, service, service.trace_of(exchange))
    document = functools.partial(_document, request, answer_format)
    await answer(service, exchange, request, job, ChatDialect(answer_format), document)


def chat_job(request: ChatRequest, service: Service, trace: str) -> Job:
    """The validated job; raises UserError."""
    adapter = service.adapters.find(request.model, request.lora_path)
    n = check(request, chat.NEUTRAL)
    names, max_tokens = {"logprobs": "top_logprobs", "prompt": "messages"}, request.max_tokens
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
        rules=rules_of(
            request,
            request.response_format,
            tools=request.tools,
            choice=request.tool_choice,
            parallel=request.parallel_tool_calls,
        ),
        answer_format=_answer_format(request, service.config),
        adapter=adapter,
    )


def _answer_format(request: ChatRequest, config: Config) -> AnswerFormat:
    names = [tool.function.name for tool in request.tools or () if tool.function is not None]
    return answer_format_of(config, names, request.tool_choice)


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
    if request.verbosity is not None:
        arguments.setdefault("verbosity", request.verbosity)
    return prompts.chat_prompt(
        [prompts.template_message(m, f"messages[{i}]") for i, m in enumerate(request.messages)],
        tools=request.tools if request.tool_choice != "none" else None,
        arguments=arguments,
        continue_final=continue_final,
    )


def _document(
    request: ChatRequest, answer_format: AnswerFormat, head: AnswerHead, collector: Collector
) -> ChatCompletion:
    read, top = collector.pending[0], request.prompt_logprobs
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        usage=usage_document(collector.meter.total()),
        prompt_logprobs=msgspec.UNSET if top is None else prompt_logprobs(read.prompt_logprobs, top),
        prompt_token_ids=list(read.prompt_ids) or msgspec.UNSET,
        choices=[
            _choice(request, answer_format, index, pending) for index, pending in enumerate(collector.pending)
        ],
    )


def _logprobs(entries: list[TextLogprob]) -> ChoiceLogprobs:
    return ChoiceLogprobs([token_logprob(entry) for entry in entries])


def _choice(request: ChatRequest, answer_format: AnswerFormat, index: int, pending: Pending) -> ChatChoice:
    writer = ChatWriter(answer_format)
    writer.begin(thinking=pending.thinking)
    return ChatChoice(
        index=index,
        logprobs=_logprobs(pending.logprobs) if pending.logprobs and request.logprobs else None,
        token_ids=list(pending.token_ids) if pending.token_ids else msgspec.UNSET,
        message=writer.message(pending.take()),
        finish_reason=finish_reason(pending.finish, called=writer.called),
        stop_reason=pending.stop,
        weight_versions=pending.weights or msgspec.UNSET,
    )
