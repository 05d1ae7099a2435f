"""`/v1/messages`: Anthropic's API, for text, tools and thoughts. Its errors have Anthropic's shape too."""

from __future__ import annotations

from typing import Any

import msgspec

from actors.frontend import anthropic_turns, delivery, parameters, prompts
from actors.frontend.answer_format import AnswerFormat, answer_format_of
from actors.frontend.anthropic_blocks import Blocks, event
from actors.frontend.jobs import Job
from actors.frontend.rules import rules_of
from actors.frontend.service import Service, new_id, read
from actors.frontend.text import Collector, Meter, Pending
from protocols.config import Config
from protocols.errors import ErrorBody, UserError
from protocols.messages import Encode, TextRow
from protocols.openai import messages as shapes
from protocols.openai.chat import Function, Tool
from protocols.openai.generation import GenerationFields, refuse_unserved
from protocols.openai.messages import (
    CountRequest,
    MessageAnswer,
    MessageError,
    MessageErrorDetail,
    MessageRequest,
    MessageToolChoice,
    MessageUsage,
    Thinking,
    TokenCount,
)
from protocols.request import ChatPrompt, Finish, Usage
from runtime.exchange import Exchange

_message = msgspec.json.Decoder(MessageRequest)
_count = msgspec.json.Decoder(CountRequest)
_encode = msgspec.json.Encoder().encode
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_document(body: ErrorBody, request_id: str) -> bytes:
    """A refusal in Anthropic's words."""
    kind = _KINDS.get(body.status, "invalid_request_error" if body.status < 500 else "api_error")
    return _encode(MessageError(MessageErrorDetail(kind, body.message), request_id))


async def create(service: Service, exchange: Exchange) -> None:
    """Answer `POST /v1/messages`."""
    request = await read(_message, await exchange.body())
    blocks = Blocks(_answer_format(request, service.config), shown=_shows_thoughts(request.thinking))
    job = message_job(request, service, service.trace_of(exchange))
    id, model = new_id("msg_"), service.title(job)
    if request.stream:
        await delivery.stream(exchange, service.engine, job, MessageStream(id, model, exchange.id, blocks))
        return
    collector = Collector(1, 1)
    await delivery.collect(service.engine, job, collector)
    (pending,) = collector.pending
    blocks.begin(thinking=pending.thinking)
    blocks.feed(pending.take(), last=True)
    reason, sequence = _stop(pending, called=blocks.called)
    answer = MessageAnswer(
        id=id,
        model=model,
        content=blocks.done,
        stop_reason=reason,
        stop_sequence=sequence,
        usage=_usage(collector.meter.total()),
        weight_versions=collector.meter.total().weights or msgspec.UNSET,
    )
    await exchange.respond(200, _encode(answer))


async def count_tokens(service: Service, exchange: Exchange) -> None:
    """Answer `POST /v1/messages/count_tokens`."""
    request = await read(_count, await exchange.body())
    service.adapters.find(request.model)
    encoded = await service.engine.questions.encode(Encode(0, 0, _prompt(request)))
    await exchange.respond(200, _encode(TokenCount(len(encoded.tokens) // 4)))


def message_job(request: MessageRequest, service: Service, trace: str) -> Job:
    """The validated job; raises UserError."""
    adapter = service.adapters.find(request.model)
    refuse_unserved(request, shapes.NEUTRAL)
    fields = GenerationFields(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=request.stop_sequences,
    )
    return parameters.job(
        fields,
        (_prompt(request),),
        service.model.vocab_size,
        max_tokens=request.max_tokens,
        logprobs=None,
        names={"stop": "stop_sequences", "prompt": "messages"},
        trace=trace,
        adapter=adapter,
        rules=rules_of(
            fields,
            tools=_tools(request),
            choice=_choice(request.tool_choice),
            parallel=_parallel(request.tool_choice),
        ),
        answer_format=_answer_format(request, service.config),
    )


def _answer_format(request: CountRequest, config: Config) -> AnswerFormat:
    return answer_format_of(config, [tool.name for tool in request.tools or ()], _choice(request.tool_choice))


def _shows_thoughts(thinking: Thinking | None) -> bool:
    if thinking is not None and thinking.type not in ("enabled", "adaptive", "disabled"):
        raise UserError("thinking.type must be 'enabled', 'adaptive' or 'disabled'.", param="thinking.type")
    return thinking is not None and thinking.type != "disabled"


def _tools(request: CountRequest) -> list[Tool]:
    """As chat has them; tools of Anthropic's own, whose type has another name, are not served."""
    return [
        Tool(
            type="function" if tool.type in (None, "custom") else str(tool.type),
            function=Function(
                name=tool.name,
                description=tool.description,
                parameters=tool.input_schema,
                strict=tool.strict,
            ),
        )
        for tool in request.tools or ()
    ]


def _choice(choice: MessageToolChoice | None) -> Any:
    """As chat has it."""
    match choice:
        case None | MessageToolChoice(type="auto"):
            return "auto"
        case MessageToolChoice(type="none"):
            return "none"
        case MessageToolChoice(type="any"):
            return "required"
        case MessageToolChoice(type="tool", name=str(name)):
            return {"type": "function", "name": name}
        case _:
            raise UserError(
                "tool_choice may be of type 'auto', 'any', 'none', or 'tool' with a name.",
                param="tool_choice",
            )


def _parallel(choice: MessageToolChoice | None) -> bool | None:
    return False if choice is not None and choice.disable_parallel_tool_use else None


def _prompt(request: CountRequest) -> ChatPrompt:
    if not request.messages:
        raise UserError("messages must not be empty.", param="messages")
    turns = [
        message
        for i, turn in enumerate(request.messages)
        for message in anthropic_turns.messages_of(turn, f"messages[{i}]")
    ]
    system = anthropic_turns.text_of(request.system, "system") if request.system is not None else ""
    before = [{"role": "system", "content": system}] if system else []
    unfinished = turns[-1]["role"] == "assistant" and "tool_calls" not in turns[-1]
    return prompts.chat_prompt(
        [*before, *turns],
        tools=_tools(request) if _choice(request.tool_choice) != "none" else None,
        continue_final=unfinished,
    )


def _stop(pending: Pending, *, called: bool) -> tuple[str, str | None]:
    """stop_reason and stop_sequence."""
    if pending.finish is Finish.LENGTH:
        return "max_tokens", None
    if isinstance(pending.stop, str):
        return "stop_sequence", pending.stop
    return "tool_use" if called else "end_turn", None


def _usage(usage: Usage) -> MessageUsage:
    fresh = usage.prompt_tokens - usage.cached_tokens
    return MessageUsage(fresh, usage.completion_tokens, usage.cached_tokens)


class MessageStream:
    """The events of one streamed message; nothing is said before the first row, which brings the counts."""

    def __init__(self, id: str, model: str, request_id: str, blocks: Blocks) -> None:
        self.ended = False
        self._blocks = blocks
        self._id, self._model, self._request_id = id, model, request_id
        self._pending = Pending()
        self._meter = Meter(1, 1)
        self._begun = self._opened = False
        self._error: ErrorBody | None = None

    def feed(self, index: int, row: TextRow) -> None:
        """Take in a row."""
        self._begun = True
        self._pending.add(row)
        self._meter.add(index, row)

    def fail(self, error: ErrorBody) -> None:
        """The end, by an error."""
        self._error = error

    def take(self) -> bytes:
        """The events that are to be sent now."""
        out: list[bytes] = []
        if self._begun and not self._opened:
            self._open(out)
        last = self._pending.finish is not Finish.NONE and self._error is None
        if self._pending or last:
            out += self._blocks.feed(self._pending.take(), last=last)
        if self._error is not None:
            out.append(b"event: error\ndata: %b\n\n" % error_document(self._error, self._request_id))
            self.ended = True
        elif last:
            self._close(out)
        return b"".join(out)

    def _open(self, out: list[bytes]) -> None:
        self._opened = True
        self._blocks.begin(thinking=self._pending.thinking)
        message = MessageAnswer(
            id=self._id,
            model=self._model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=_usage(self._meter.total()),
        )
        out.append(event("message_start", message=message))

    def _close(self, out: list[bytes]) -> None:
        self.ended = True
        reason, sequence = _stop(self._pending, called=self._blocks.called)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        usage = self._meter.total()
        made_by = {"weight_versions": usage.weights} if usage.weights else {}
        out.append(event("message_delta", delta=delta, usage=_usage(usage), **made_by))
        out.append(event("message_stop"))
