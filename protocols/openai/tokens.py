"""`/tokenize` and `/detokenize`, in the shapes of vLLM."""

from __future__ import annotations

from typing import Any

import msgspec

from protocols.openai.chat import ChatMessage, Tool
from protocols.openai.generation import Int


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of a tokenize request: a prompt, or messages for the chat template.

    add_special_tokens: by default for a prompt, and not for messages, whose template writes them.
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class Tokenized(msgspec.Struct, frozen=True):
    """Answer to it. token_strs: the vocabulary's entries, where asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of a detokenize request. skip_special_tokens: false by default."""

    model: str | None = None
    tokens: list[Int]
    skip_special_tokens: bool | None = None


class Detokenized(msgspec.Struct, frozen=True):
    """Answer to it."""

    prompt: str
