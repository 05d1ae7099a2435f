"""`/v1/completions`: request, completion and chunk."""

from __future__ import annotations

from typing import Any

import msgspec

from protocols.openai.chat import CompletionUsage
from protocols.openai.generation import ChoicesFields, Int
from protocols.openai.logprobs import PromptLogprobs

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default of this endpoint, which the other engines keep."""


class CompletionRequest(ChoicesFields, kw_only=True):
    """Body of a completion request. prompt: a text, token ids, or a list of either."""

    prompt: str | list[str | Int | list[Int]]
    logprobs: Int | None = None
    echo: bool | None = None
    response_format: Any = None

    suffix: Any = None
    prompt_embeds: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "prompt_embeds": (),
}
"""As `generation.NEUTRAL`, of this endpoint."""


class TextLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a choice, one entry a token. text_offset: characters before the token. Nothing
    predicts the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A choice of a completion or of a chunk of one."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None
    stop_reason: str | int | None = None
    weight_versions: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: list[PromptLogprobs | None] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage
    system_fingerprint: None = None
