"""`/v1/embeddings`: request and answer."""

from __future__ import annotations

import msgspec

from protocols.openai.generation import Int


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """Body of an embedding request.

    input: a text, token ids, or a list of either. encoding_format: "float" (the default) or "base64", of
    little-endian float32. dimensions: only so many of the first numbers. pooling, normalize: ours; whose
    hidden state ("last", the default, or "mean") and whether it is brought to length 1 (it is by default).
    """

    model: str
    input: str | list[str | Int | list[Int]]
    encoding_format: str | None = None
    dimensions: Int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    cache_salt: str | None = None
    priority: Int | None = None
    truncate_prompt_tokens: Int | None = None
    user: str | None = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """The embedding of one input: numbers, or base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Token counts of a request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
