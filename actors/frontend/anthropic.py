"""`/v1/messages`: Anthropic's API, for text. Its errors have Anthropic's shape too."""

from __future__ import annotations

import msgspec

from actors.frontend import delivery, parameters, prompts
from actors.frontend.jobs import Job
from actors.frontend.service import Service, new_id, read
from actors.frontend.text import Collector, Meter, Pending
from protocols.errors import ErrorBody, UserError
from protocols.messages import Encode, TextRow
from protocols.openai import messages as shapes
from protocols.openai.chat import Part
from protocols.openai.generation import GenerationFields, refuse_unserved
from protocols.openai.messages import (
    AnthropicMessage,
    Block,
    CountRequest,
    MessageAnswer,
    MessageError,
    MessageErrorDetail,
    MessageRequest,
    MessageUsage,
    TextBlock,
    TokenCount,
)
from protocols.request import ChatPrompt, Finish, Usage
from runtime.http import Exchange

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
    job = message_job(request, service, service.trace_of(exchange))
    id, model = new_id("msg_"), service.title(job)
    if request.stream:
        await delivery.stream(exchange, service.engine, job, MessageStream(id, model, exchange.id))
        return
    collector = Collector(1, 1)
    await delivery.collect(service.engine, job, collector)
    (pending,) = collector.pending
    reason, sequence = _stop(pending)
    answer = MessageAnswer(
        id=id,
        model=model,
        content=[TextBlock(pending.take())],
        stop_reason=reason,
        stop_sequence=sequence,
        usage=_usage(collector.meter.total()),
    )
    await exchange.respond(200, _encode(answer))


async def count_tokens(service: Service, exchange: Exchange) -> None:
    """Answer `POST /v1/messages/count_tokens`."""
    request = await read(_count, await exchange.body())
    service.adapters.find(request.model)
    refuse_unserved(request, shapes.COUNT_NEUTRAL)
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
    )


def _prompt(request: CountRequest) -> ChatPrompt:
    turns = [_turn(turn, f"messages[{i}]") for i, turn in enumerate(request.messages)]
    if not turns:
        raise UserError("messages must not be empty.", param="messages")
    system = _text(request.system, "system") if request.system is not None else ""
    before = [{"role": "system", "content": system}] if system else []
    return prompts.chat_prompt([*before, *turns], continue_final=turns[-1]["role"] == "assistant")


def _turn(turn: AnthropicMessage, where: str) -> prompts.Message:
    if turn.role not in ("user", "assistant"):
        raise UserError(f"{where}.role must be user or assistant.", param=f"{where}.role")
    return {"role": turn.role, "content": _text(turn.content, f"{where}.content")}


def _text(content: str | list[Block], where: str) -> str:
    if isinstance(content, str):
        return content
    return prompts.text_of([Part(type=block.type, text=block.text) for block in content], where)


def _stop(pending: Pending) -> tuple[str, str | None]:
    """stop_reason and stop_sequence."""
    if pending.finish is Finish.LENGTH:
        return "max_tokens", None
    if isinstance(pending.stop, str):
        return "stop_sequence", pending.stop
    return "end_turn", None


def _usage(usage: Usage) -> MessageUsage:
    fresh = usage.prompt_tokens - usage.cached_tokens
    return MessageUsage(fresh, usage.completion_tokens, usage.cached_tokens)


class MessageStream:
    """The events of one streamed message; nothing is said before the first row, which brings the counts."""

    def __init__(self, id: str, model: str, request_id: str) -> None:
        self.ended = False
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
        if self._pending:
            delta = {"type": "text_delta", "text": self._pending.take()}
            out.append(_event("content_block_delta", index=0, delta=delta))
        if self._error is not None:
            out.append(b"event: error\ndata: %b\n\n" % error_document(self._error, self._request_id))
            self.ended = True
        elif self._pending.finish is not Finish.NONE:
            self._close(out)
        return b"".join(out)

    def _open(self, out: list[bytes]) -> None:
        self._opened = True
        message = MessageAnswer(
            id=self._id,
            model=self._model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=_usage(self._meter.total()),
        )
        out.append(_event("message_start", message=message))
        out.append(_event("content_block_start", index=0, content_block=TextBlock("")))

    def _close(self, out: list[bytes]) -> None:
        self.ended = True
        reason, sequence = _stop(self._pending)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        out.append(_event("content_block_stop", index=0))
        out.append(_event("message_delta", delta=delta, usage=_usage(self._meter.total())))
        out.append(_event("message_stop"))


def _event(kind: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))
