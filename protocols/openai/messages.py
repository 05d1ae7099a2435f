"""`/v1/messages` and `/v1/messages/count_tokens`, in the shapes of Anthropic's API."""

from __future__ import annotations

from typing import Any

import msgspec

from protocols.openai.generation import Int


class Block(msgspec.Struct, kw_only=True):
    """A part of a content; only text is served."""

    type: str
    text: str | None = None


class AnthropicMessage(msgspec.Struct, kw_only=True):
    """One turn."""

    role: str
    content: str | list[Block]


class CountRequest(msgspec.Struct, kw_only=True):
    """Body of a count: what a message request would send to the model."""

    model: str
    messages: list[AnthropicMessage]
    system: str | list[Block] | None = None

    tools: Any = None
    tool_choice: Any = None
    thinking: Any = None


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


COUNT_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ({"type": "auto"}, {"type": "none"}),
    "thinking": ({"type": "disabled"},),
}
NEUTRAL: dict[str, tuple[Any, ...]] = {**COUNT_NEUTRAL, "mcp_servers": ([],), "container": ()}
"""As `generation.NEUTRAL`."""


class TextBlock(msgspec.Struct, frozen=True):
    """A part of the answer."""

    text: str
    type: str = "text"


class MessageUsage(msgspec.Struct, frozen=True):
    """Token counts; those read from the prefix cache are not among `input_tokens`."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class MessageAnswer(msgspec.Struct, kw_only=True):
    """The whole answer. stop_reason: end_turn, max_tokens, stop_sequence."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[TextBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


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
