"""From a `response.create`, over HTTP or the WebSocket, to what runs: conversation, prompt, job and
document."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import msgspec

from actors.frontend import parameters, prompts
from actors.frontend.answer_format import answer_format_of
from actors.frontend.jobs import Job
from actors.frontend.live import Conversation
from actors.frontend.prompts import Message
from actors.frontend.response_stream import ResponseStream
from actors.frontend.rules import rules_of
from actors.frontend.sealed import unseal
from actors.frontend.service import Service
from protocols.config import Config
from protocols.errors import UserError
from protocols.openai import responses
from protocols.openai.chat import Function, Tool
from protocols.openai.responses import FunctionTool, InputItem, Reasoning, Response, ResponsesRequest
from protocols.sampling import SamplingParams

MAX_METADATA = 16
_LOGPROBS = "message.output_text.logprobs"
_SEALED = "reasoning.encrypted_content"
_SUMMARIES = (None, "auto", "concise", "detailed")
_INCLUDES = frozenset(
    {
        _LOGPROBS,
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        _SEALED,
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
"""What may be asked for; of tools that are not served there is never anything to include."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """A validated request. response: the document, still without id. conversation: what the answer will
    continue; silent: a warm-up; sealed: see Items."""

    job: Job
    response: Response
    conversation: Conversation
    silent: bool
    sealed: bool


def prepare(
    request: ResponsesRequest, service: Service, previous: Conversation | None, trace: str, size: int
) -> Turn:
    """Validate a request that continues `previous`; `size`: bytes of its body. Raises UserError."""
    adapter = service.adapters.find(request.model, request.lora_path)
    parameters.check_served(request, responses.NEUTRAL)
    tools = _tools(request)
    answer_format = answer_format_of(service.config, _names(request.tools), request.tool_choice)
    format = _format(request.text)
    if request.metadata is not None and len(request.metadata) > MAX_METADATA:
        raise UserError(f"metadata may hold at most {MAX_METADATA} pairs.", param="metadata")
    _check_include(request.include)
    silent = request.generate is False
    asked = input_messages(request.input)
    if not asked and previous is None and not request.instructions:
        raise UserError(
            "Missing required parameter: 'input'.", param="input", code="missing_required_parameter"
        )
    conversation = (previous or Conversation()).and_then(asked, size)
    prompt = prompts.chat_prompt(
        [*_instructions(request.instructions), *conversation.messages],
        tools=tools if request.tool_choice != "none" else None,
        arguments=_arguments(request),
        shorten=_shortens(request.truncation),
    )
    wanted = _LOGPROBS in (request.include or ()) or bool(request.top_logprobs)
    job = parameters.job(
        request,
        (prompt,),
        service.model.vocab_size,
        max_tokens=0 if silent else request.max_output_tokens,
        least=0 if silent else 1,
        logprobs=parameters.top_logprobs(wanted, request.top_logprobs),
        names={"max_tokens": "max_output_tokens", "logprobs": "top_logprobs", "prompt": "input"},
        trace=trace,
        rules=rules_of(
            request,
            format,
            "text.format",
            tools=tools,
            choice=request.tool_choice,
            parallel=request.parallel_tool_calls,
        ),
        answer_format=answer_format,
        adapter=adapter,
    )
    sealed = _SEALED in (request.include or ())
    document = _document(request, service.title(job), job.sampling)
    document.traceparent = trace or msgspec.UNSET
    return Turn(job, document, conversation, silent, sealed)


def input_messages(given: str | list[InputItem] | None) -> tuple[Message, ...]:
    """The input as messages of the chat template."""
    if given is None:
        return ()
    if isinstance(given, str):
        return ({"role": "user", "content": given},)
    messages: list[Message] = []
    for i, item in enumerate(given):
        _add_item(messages, item, f"input[{i}]")
    return tuple(message for message in messages if not _only_thought(message))


def _only_thought(message: Message) -> bool:
    """Whether a message of the assistant consists of nothing but a thought so far."""
    return "reasoning_content" in message and not message["content"] and "tool_calls" not in message


def _add_item(messages: list[Message], item: InputItem, where: str) -> None:
    match item.type:
        case None | "message":
            role = prompts.role(item.role or "", where)
            text = prompts.text_of(item.content, f"{where}.content")
            if role == "assistant" and messages and _only_thought(messages[-1]):
                messages[-1]["content"] = text
            else:
                messages.append({"role": role, "content": text})
        case "function_call":
            call = prompts.function_call(
                item.call_id, _needed(item.name, f"{where}.name"), item.arguments, where
            )
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call)
        case "function_call_output":
            text = prompts.text_of(item.output, f"{where}.output")
            call_id = _needed(item.call_id, f"{where}.call_id")
            messages.append({"role": "tool", "content": text, "tool_call_id": call_id})
        case "reasoning":
            if thought := _thought(item):
                messages.append({"role": "assistant", "content": "", "reasoning_content": thought})
        case other:
            raise UserError(
                f"{where} is of type '{other[:50]}', which is not supported.", param=where, code="unsupported"
            )


def _thought(item: InputItem) -> str:
    """What a thought says; one that another server has encrypted says nothing here."""
    if isinstance(item.content, str):
        return item.content
    shown = "".join(part.text or "" for part in item.content or ())
    return shown or unseal(item.encrypted_content or "")


def _needed(value: str | None, where: str) -> str:
    if value is None:
        raise UserError(
            f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter"
        )
    return value


def _instructions(text: str | None) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def _format(text: Any) -> Any:
    """`text.format`."""
    if text is not None and not isinstance(text, dict):
        raise UserError("text must be an object.", param="text")
    return text.get("format") if text is not None else None


def _names(tools: list[FunctionTool] | None) -> list[str]:
    return [tool.name for tool in tools or () if tool.name is not None]


def stream_of(
    config: Config, response: Response, item_id: str, *, silent: bool, sealed: bool
) -> ResponseStream:
    """The events of a response: a function of its document, the id of its first message, and its tokens."""
    answer_format = answer_format_of(config, _names(response.tools), response.tool_choice)
    return ResponseStream(response, item_id, silent=silent, answer_format=answer_format, sealed=sealed)


def _tools(request: ResponsesRequest) -> list[Tool]:
    return [
        Tool(
            type=tool.type,
            function=Function(
                name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
            )
            if tool.name is not None
            else None,
        )
        for tool in request.tools or ()
    ]


def _check_include(include: list[str] | None) -> None:
    for name in include or ():
        if name not in _INCLUDES:
            raise UserError(f"include does not know '{name[:100]}'.", param="include")


def _shortens(truncation: str | None) -> bool:
    if truncation not in (None, "auto", "disabled"):
        raise UserError("truncation must be 'auto' or 'disabled'.", param="truncation")
    return truncation == "auto"


def _arguments(request: ResponsesRequest) -> dict[str, Any]:
    arguments = dict(request.chat_template_kwargs or {})
    if request.reasoning is not None and request.reasoning.summary not in _SUMMARIES:
        raise UserError(
            "reasoning.summary must be 'auto', 'concise' or 'detailed'.", param="reasoning.summary"
        )
    if request.reasoning is not None and request.reasoning.effort is not None:
        arguments.setdefault("reasoning_effort", request.reasoning.effort)
    if isinstance(request.text, dict) and request.text.get("verbosity") is not None:
        arguments.setdefault("verbosity", request.text["verbosity"])
    return arguments


def _document(request: ResponsesRequest, model: str, sampling: SamplingParams) -> Response:
    return Response(
        id="",
        created_at=int(time.time()),
        status="queued",
        model=model,
        output=[],
        instructions=request.instructions,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_logprobs=sampling.logprobs or 0,
        max_output_tokens=request.max_output_tokens,
        text={"format": _format(request.text) or {"type": "text"}},
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        previous_response_id=request.previous_response_id,
        reasoning=request.reasoning and Reasoning(effort=request.reasoning.effort),
        truncation=request.truncation or "disabled",
        background=bool(request.background),
        store=request.store is not False,
        user=request.user,
    )


decoder = msgspec.json.Decoder(ResponsesRequest)
