"""`/v1/responses`, over HTTP and over a WebSocket: request, client events, response and server events."""

from __future__ import annotations

from typing import Any

import msgspec

from protocols.openai.chat import Part
from protocols.openai.generation import GenerationFields, Int
from protocols.openai.logprobs import TokenLogprob


class InputItem(msgspec.Struct, kw_only=True):
    """An item of the input: a message, or a call of an earlier turn, or that call's output.

    type: message (also when absent), reasoning, function_call, function_call_output. A thought is its content
    or what its encrypted_content stands for; its summary is passed over.
    """

    type: str | None = None
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    encrypted_content: str | None = None


class FunctionTool(msgspec.Struct, kw_only=True):
    """A tool of a request; only functions are served. parameters: a JSON schema."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Reasoning(msgspec.Struct, kw_only=True):
    """How much a reasoning model thinks. summary, generate_summary: taken, though no summary is made: the
    thought itself is shown."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesRequest(GenerationFields, kw_only=True):
    """Body of a response request, and of `response.create` on a WebSocket.

    stream_id, generate: of the WebSocket. model may come with the WebSocket's address instead.
    traceparent: of this request alone, where a connection carries many.
    """

    model: str | None = None
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    max_output_tokens: Int | None = None
    top_logprobs: Int | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    truncation: str | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    stream_id: str | None = None
    generate: bool | None = None
    traceparent: str | None = None

    text: Any = None
    conversation: Any = None
    prompt: Any = None
    max_tool_calls: Any = None
    context_management: Any = None
    moderation: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "conversation": (),
    "prompt": (),
    "context_management": ([],),
    "moderation": (),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "return_token_ids": (False,),
}
"""As `generation.NEUTRAL`, of this endpoint."""


class Envelope(msgspec.Struct):
    """What tells one client event from another, and which lane it speaks of."""

    type: str
    stream_id: Any = None


class SteerEvent(msgspec.Struct, kw_only=True):
    """`response.steer`: more input for a running response, which is not served."""

    previous_response_id: str
    input: Any = None


class CancelEvent(msgspec.Struct, kw_only=True):
    """`response.cancel`: our extension, ends a running response of this connection."""

    response_id: str


class ResumeEvent(msgspec.Struct, kw_only=True):
    """`response.resume`: our extension, streams the events of a response after number `starting_after`."""

    response_id: str
    starting_after: Int = -1
    stream_id: str | None = None


class OutputText(msgspec.Struct, kw_only=True):
    """A content part of the answer."""

    type: str = "output_text"
    text: str = ""
    annotations: list[None] = []
    logprobs: list[TokenLogprob] = []


class OutputMessage(msgspec.Struct, kw_only=True):
    """The answer's text. status: in_progress, completed or incomplete."""

    id: str
    type: str = "message"
    status: str
    role: str = "assistant"
    content: list[OutputText]


class ReasoningText(msgspec.Struct, kw_only=True):
    """The content of a thought."""

    type: str = "reasoning_text"
    text: str = ""


class ReasoningItem(msgspec.Struct, kw_only=True):
    """A thought. encrypted_content: stands for it, where that was asked for."""

    id: str
    type: str = "reasoning"
    status: str = "in_progress"
    summary: list[None] = []
    content: list[ReasoningText] = []
    encrypted_content: str | msgspec.UnsetType = msgspec.UNSET


class FunctionCallItem(msgspec.Struct, kw_only=True):
    """A call of a function. arguments: JSON text."""

    id: str
    type: str = "function_call"
    status: str = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


OutputItem = OutputMessage | ReasoningItem | FunctionCallItem


class InputDetails(msgspec.Struct, frozen=True):
    """Where input tokens came from."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    """What output tokens were spent on."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """Token counts of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseFailure(msgspec.Struct, frozen=True):
    """Why a response failed."""

    code: str
    message: str
    type: str
    param: str | None


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response is incomplete."""

    reason: str


class Response(msgspec.Struct, kw_only=True):
    """A response as a document; status: queued, in_progress, completed, incomplete, failed, cancelled.
    output: of OutputItem. weight_versions: of the weights that made it. traceparent: of its span."""

    id: str
    object: str = "response"
    created_at: int
    status: str
    completed_at: int | None = None
    model: str
    output: list[Any]
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    top_logprobs: int = 0
    max_output_tokens: int | None = None
    tool_choice: Any = "auto"
    tools: list[FunctionTool] = []
    previous_response_id: str | None = None
    reasoning: Reasoning | None = None
    text: dict[str, Any] = msgspec.field(default_factory=lambda: {"format": {"type": "text"}})
    truncation: str = "disabled"
    background: bool = False
    usage: ResponseUsage | None = None
    store: bool = True
    user: str | None = None
    weight_versions: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    traceparent: str | msgspec.UnsetType = msgspec.UNSET


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the input of a response."""

    object: str = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseDeleted(msgspec.Struct, frozen=True):
    """Answer to a deletion."""

    id: str
    object: str = "response"
    deleted: bool = True
