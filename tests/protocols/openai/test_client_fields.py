"""Every field that the openai client can send is read here, or documented to be without effect."""

from __future__ import annotations

import pathlib
from typing import Any

import msgspec
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from openai.types.responses import response_create_params

from protocols.openai.chat import ChatMessage, ChatRequest
from protocols.openai.completions import CompletionRequest
from protocols.openai.embeddings import EmbeddingRequest
from protocols.openai.responses import ResponsesRequest

_EVERYWHERE = {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"}
_CHAT = {*_EVERYWHERE, "service_tier", "store", "metadata", "prediction"}
_RESPONSES = {*_EVERYWHERE, "service_tier", "access_programs", "image", "max_tool_calls", "stream_options"}

CASES: list[tuple[Any, type[msgspec.Struct], set[str]]] = [
    (chat_create_params.CompletionCreateParamsBase, ChatRequest, _CHAT),
    (completion_create_params.CompletionCreateParamsBase, CompletionRequest, set()),
    (response_create_params.ResponseCreateParamsBase, ResponsesRequest, _RESPONSES),
    (embedding_create_params.EmbeddingCreateParams, EmbeddingRequest, set()),
    (ChatCompletionUserMessageParam, ChatMessage, set()),
    (ChatCompletionAssistantMessageParam, ChatMessage, set()),
    (ChatCompletionToolMessageParam, ChatMessage, set()),
]


@pytest.mark.parametrize(("sent", "read", "ignored"), CASES)
def test_fields(sent: Any, read: type[msgspec.Struct], ignored: set[str]) -> None:
    fields = {each.encode_name for each in msgspec.structs.fields(read)}
    assert sent.__annotations__.keys() - fields <= ignored


def test_what_has_no_effect_is_documented() -> None:
    text = (pathlib.Path(__file__).parents[3] / "docs" / "api.md").read_text()
    assert [name for name in sorted(_CHAT | _RESPONSES) if f"`{name}" not in text] == []
