"""`/v1/messages` and `/v1/messages/count_tokens`, in the shapes of Anthropic's API."""

from __future__ import annotations

from typing import Any

import msgspec

from protocols.openai.generation import Int


class Block(msgspec.Struct, kw_only=True):
    """A part of a content: text; of the assistant also tool_use (a call: id, name, input) and thinking; of
    the user also tool_result (the output of call tool_use_id)."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class MessageTool(msgspec.Struct, kw_only=True):
    """A function that the model may call. input_schema: the JSON schema of its arguments."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class MessageToolChoice(msgspec.Struct, kw_only=True):
    """type: auto, any (a call), tool (of `name`), none."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True):
    """Whether thoughts are shown. type: enabled, adaptive, disabled. budget_tokens: within `max_tokens`; how
    long the model thinks is its own affair."""

    type: str
    budget_tokens: Int | None = None


class AnthropicMessage(msgspec.Struct, kw_only=True):
    """One turn."""

    role: str
    content: str | list[Block]


class CountRequest(msgspec.Struct, kw_only=True):
    """Body of a count: what a message request would send to the model."""

    model: str
    messages: list[AnthropicMessage]
    system: str | list[Block] | None = None

    tools: list[MessageTool] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None


class MessageRequest(CountRequest, kw_only=True):
    """Body of a message request."""

    max_tokens: Int
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    stream: bool | None = None

    mcp_servers: Any = None
    container: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {"mcp_servers": ([],), "container": ()}
"""As `generation.NEUTRAL`."""


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    """A part of the answer."""

    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """A thought. signature: nothing is signed, so any thought may be sent back, or left out."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call of a function. input: its arguments; in a stream they come as JSON text, piece by piece."""

    id: str
    name: str
    input: Any


AnswerBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct, frozen=True):
    """Token counts; those read from the prefix cache are not among `input_tokens`."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class MessageAnswer(msgspec.Struct, kw_only=True):
    """The whole answer. stop_reason: end_turn, max_tokens, stop_sequence, tool_use. weight_versions: of the
    weights that made it."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[AnswerBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage
    weight_versions: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


class TokenCount(msgspec.Struct, frozen=True):
    """Answer to a count."""

    input_tokens: int


class MessageErrorDetail(msgspec.Struct, frozen=True):
    """Why a request was refused."""

    type: str
    message: str


class MessageError(msgspec.Struct, frozen=True):
    """Anthropic's error document."""

    error: MessageErrorDetail
    request_id: str
    type: str = "error"
