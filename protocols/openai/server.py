"""What the server says of itself: models, version, health."""

from __future__ import annotations

from typing import Any

import msgspec


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is served. max_model_len: tokens of prompt and answer together. parent: of an adapter, the
    model that it adapts; root: the name itself, as clients of other engines expect."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "troupe"
    max_model_len: int
    root: str | None = None
    parent: str | None = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models."""

    object: str = "list"
    data: list[ModelEntry]


class Version(msgspec.Struct, frozen=True):
    """The version."""

    version: str


class Alive(msgspec.Struct, frozen=True):
    """All is well."""

    status: str = "ok"


class KeyUse(msgspec.Struct, frozen=True, kw_only=True):
    """Every API key with what it may do and has used."""

    object: str = "list"
    data: list[dict[str, Any]]
