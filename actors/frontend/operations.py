"""What is served: every method of every path, with the types that read its request and write its answer, and
whom it is for. The router serves what stands here and nothing else; the OpenAPI document shows all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from actors.frontend import admin_routes
from actors.frontend.access import Scope
from actors.frontend.page import HTML
from protocols.openai.body import ErrorDocument
from protocols.openai.chat import ChatCompletion, ChatRequest
from protocols.openai.completions import Completion, CompletionRequest
from protocols.openai.embeddings import EmbeddingList, EmbeddingRequest
from protocols.openai.messages import (
    CountRequest,
    MessageAnswer,
    MessageError,
    MessageRequest,
    TokenCount,
)
from protocols.openai.native import NativeAnswer, NativeRequest
from protocols.openai.responses import ItemList, Response, ResponseDeleted, ResponsesRequest
from protocols.openai.server import Alive, KeyUse, ModelEntry, ModelList, Version
from protocols.openai.tokens import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from runtime.metrics import CONTENT_TYPE

Json = dict[str, Any]

_ANY = (400, 401, 403, 405, 500)
_WITH_BODY = (*_ANY, 404, 408, 413, 415, 429, 503)
_FOUND = (*_ANY, 404)
_BUSY = (*_ANY, 503)
_SOCKET = (*_ANY, 426, 429, 503)


@dataclasses.dataclass(frozen=True)
class Operation:
    """What one method of one path takes and gives, and whom it is for. answer: None for a WebSocket. kind: of
    an answer that is no JSON. streams: it may be an event stream instead. query: names of its parameters and
    their schemas. refusal: the document of a refusal. statuses: of refusals."""

    method: str
    path: str
    summary: str
    body: Any = None
    answer: Any = None
    scope: Scope = Scope.CLIENT
    kind: str = ""
    streams: bool = False
    query: tuple[tuple[str, Json], ...] = ()
    refusal: Any = ErrorDocument
    statuses: tuple[int, ...] = _ANY


def _get(path: str, summary: str, answer: Any = None, **more: Any) -> Operation:
    return Operation("GET", path, summary, answer=answer, **more)


def _post(path: str, summary: str, body: Any, answer: Any, **more: Any) -> Operation:
    return Operation("POST", path, summary, body, answer, statuses=_WITH_BODY, **more)


_WORDS = {"type": "array", "items": {"type": "string"}}


def _administration() -> Iterator[Operation]:
    """The verbs' names."""
    yield _get(admin_routes.KEYS, "Every key, its limits and its use", KeyUse, scope=Scope.ADMIN)
    for path, route in admin_routes.ROUTES.items():
        for method in route.methods:
            yield Operation(
                method,
                path,
                route.summary,
                body=route.body if method == "POST" else None,
                answer=route.answer,
                scope=Scope.ADMIN,
                query=tuple((name, _WORDS) for name in route.query),
                statuses=(*_WITH_BODY, 409, 504),
            )


_FOLLOW = (
    ("stream", {"type": "boolean"}),
    ("starting_after", {"type": "integer", "minimum": -1, "maximum": 10**9}),
)
_PAGE = (
    ("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
    ("order", {"type": "string", "enum": ["asc", "desc"]}),
    ("after", {"type": "string"}),
    ("before", {"type": "string"}),
)
_SINCE = (("since", {"type": "integer", "minimum": 0}),)
_ONE = "/v1/responses/{id}"
_OPEN, _WATCH = Scope.OPEN, Scope.WATCH

OPERATIONS = (
    _get("/", "The chat page", str, kind=HTML, scope=_OPEN),
    _get("/health", "Whether every actor is ready", Alive, scope=_OPEN, statuses=_BUSY),
    _get("/ping", "The same", Alive, scope=_OPEN, statuses=_BUSY),
    _get("/health_generate", "Really generates a token", Alive, statuses=(*_ANY, 429, 503)),
    _get("/version", "The version", Version, scope=_OPEN),
    _get("/openapi.json", "This document", Json, scope=_OPEN),
    _get(
        "/metrics", "Everything for Prometheus", str, kind=CONTENT_TYPE, scope=_WATCH, statuses=(*_ANY, 503)
    ),
    _get("/_company", "The live page of the company", str, kind=HTML, scope=_OPEN),
    _get("/_company/live", "A WebSocket of what it shows", scope=_WATCH, query=_SINCE, statuses=_SOCKET),
    _get("/v1/models", "The models served", ModelList),
    _get("/v1/models/{id}", "One of them", ModelEntry, statuses=_FOUND),
    _post("/v1/chat/completions", "The assistant's next turn", ChatRequest, ChatCompletion, streams=True),
    _post("/v1/completions", "What follows a text", CompletionRequest, Completion, streams=True),
    _post("/v1/embeddings", "Pooled hidden states", EmbeddingRequest, EmbeddingList),
    _post("/v1/responses", "A response", ResponsesRequest, Response, streams=True),
    _get("/v1/responses", "A WebSocket of responses", statuses=_SOCKET),
    _get(_ONE, "A response, or its events", Response, streams=True, query=_FOLLOW, statuses=_FOUND),
    Operation("DELETE", _ONE, "Forget a response", answer=ResponseDeleted, statuses=_FOUND),
    Operation("POST", f"{_ONE}/cancel", "End a response", answer=Response, statuses=_FOUND),
    _get(f"{_ONE}/input_items", "What it answers", ItemList, query=_PAGE, statuses=_FOUND),
    _post(
        "/v1/messages",
        "Anthropic's messages",
        MessageRequest,
        MessageAnswer,
        streams=True,
        refusal=MessageError,
    ),
    _post("/v1/messages/count_tokens", "Their tokens", CountRequest, TokenCount, refusal=MessageError),
    _post(
        "/generate", "Tokens in, tokens out", NativeRequest, NativeAnswer | list[NativeAnswer], streams=True
    ),
    _post("/tokenize", "Ids of a text", TokenizeRequest, Tokenized),
    _post("/detokenize", "Text of ids", DetokenizeRequest, Detokenized),
    *_administration(),
)
"""Everything that can be asked for."""

SCOPES = {each.path: each.scope for each in OPERATIONS}
"""Whom each path is for."""
