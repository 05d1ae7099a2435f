"""`/v1/chat/completions`: request, completion and chunk."""

from __future__ import annotations

from typing import Any

import msgspec

from protocols.openai.generation import ChoicesFields, Int
from protocols.openai.logprobs import PromptLogprobs, TokenLogprob


class Part(msgspec.Struct, kw_only=True):
    """A part of a message's content; only text is served."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    """What an earlier turn of the assistant called. arguments: JSON text."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct, kw_only=True):
    """A call within an assistant message."""

    function: FunctionCall
    id: str | None = None
    type: str | None = None


class ChatMessage(msgspec.Struct, kw_only=True):
    """One turn of the conversation. function_call: a call, as it was written before there were several.
    reasoning: a text is another name of reasoning_content."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    audio: Any = None


class Function(msgspec.Struct, kw_only=True):
    """A function that the model may call. parameters: a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    """A tool of a chat request."""

    type: str
    function: Function | None = None


class ChatRequest(ChoicesFields, kw_only=True):
    """Body of a chat request."""

    messages: list[ChatMessage]
    max_completion_tokens: Int | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    response_format: Any = None
    tools: list[Tool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None

    echo: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    web_search_options: Any = None
    moderation: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "moderation": (),
}
"""As `generation.NEUTRAL`, of this endpoint."""


class PromptDetails(msgspec.Struct, frozen=True):
    """Where prompt tokens came from."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    """What completion tokens were spent on."""

    reasoning_tokens: int


class CompletionUsage(msgspec.Struct, frozen=True):
    """Token counts of a request, all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | msgspec.UnsetType = msgspec.UNSET


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a choice."""

    content: list[TokenLogprob]
    refusal: None = None


class AnsweredFunction(msgspec.Struct):
    """What is called. arguments: JSON text."""

    name: str
    arguments: str


class AnsweredCall(msgspec.Struct):
    """A call within the answer."""

    id: str
    function: AnsweredFunction
    type: str = "function"


class AnswerMessage(msgspec.Struct, frozen=True):
    """The assistant's turn. reasoning_content, reasoning: the same thought under the two names in use."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[AnsweredCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A choice of a completion. stop_reason: the stop string or token id, as other engines show it."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str
    stop_reason: str | int | None = None
    weight_versions: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    prompt_logprobs: list[PromptLogprobs | None] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    service_tier: None = None
    system_fingerprint: None = None
