"""The OpenAPI document of this server, made of the types that read its requests and write its answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from protocols.config import ModelCard
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
from protocols.openai.server import Alive, ModelEntry, ModelList, Version
from protocols.openai.tokens import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

Json = dict[str, Any]

_ANY = (400, 401, 403, 405, 500)
_WITH_BODY = (*_ANY, 404, 408, 413, 429, 503)
_JSON, _EVENTS, _HTML = "application/json", "text/event-stream; charset=utf-8", "text/html; charset=utf-8"


@dataclasses.dataclass(frozen=True)
class Operation:
    """What one method of one path takes and gives. streams: its answer may be an event stream. query: names
    of its parameters and their schemas. refusal: the document of a refusal. statuses: of refusals."""

    method: str
    path: str
    summary: str
    body: Any = None
    answer: Any = None
    streams: bool = False
    query: tuple[tuple[str, Json], ...] = ()
    refusal: Any = ErrorDocument
    statuses: tuple[int, ...] = _ANY
    open: bool = False


def _post(path: str, summary: str, body: Any, answer: Any, **more: Any) -> Operation:
    return Operation("post", path, summary, body, answer, statuses=_WITH_BODY, **more)


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
_FOUND = (*_ANY, 404)
_ONE = "/v1/responses/{id}"

OPERATIONS = (
    Operation("get", "/", "The chat page", answer=str, open=True),
    Operation(
        "get", "/health", "Whether every actor is ready", answer=Alive, statuses=(*_ANY, 503), open=True
    ),
    Operation(
        "get", "/health_generate", "Really generates a token", answer=Alive, statuses=(*_ANY, 429, 503)
    ),
    Operation("get", "/version", "The version", answer=Version, open=True),
    Operation("get", "/openapi.json", "This document", answer=Json, open=True),
    Operation("get", "/v1/models", "The models served", answer=ModelList),
    Operation("get", "/v1/models/{id}", "One of them", answer=ModelEntry, statuses=_FOUND),
    _post("/v1/chat/completions", "The assistant's next turn", ChatRequest, ChatCompletion, streams=True),
    _post("/v1/completions", "What follows a text", CompletionRequest, Completion, streams=True),
    _post("/v1/embeddings", "Pooled hidden states", EmbeddingRequest, EmbeddingList),
    _post("/v1/responses", "A response", ResponsesRequest, Response, streams=True),
    Operation("get", "/v1/responses", "A WebSocket of responses", statuses=(*_ANY, 426, 429, 503)),
    Operation(
        "get",
        _ONE,
        "A response, or its events",
        answer=Response,
        streams=True,
        query=_FOLLOW,
        statuses=_FOUND,
    ),
    Operation("delete", _ONE, "Forget a response", answer=ResponseDeleted, statuses=_FOUND),
    Operation("post", f"{_ONE}/cancel", "End a response", answer=Response, statuses=_FOUND),
    Operation("get", f"{_ONE}/input_items", "What it answers", answer=ItemList, query=_PAGE, statuses=_FOUND),
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
)
"""Everything that a client may ask for."""


def document(model: ModelCard, version: str, *, needs_key: bool) -> bytes:
    """The document, as JSON. needs_key: whether requests must bring one."""
    types = {
        kind for each in OPERATIONS for kind in (each.body, each.answer, each.refusal) if kind is not None
    }
    types -= {str}
    ordered = sorted(types, key=str)
    schemas, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, Json] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = _operation(each, schema_of, needs_key=needs_key)
    for component in components.values():
        if "model" in component.get("properties", {}):
            described = component["properties"]["model"]
            component["properties"]["model"] = described | {"enum": [model.name, *_null(described)]}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Troupe", "version": version},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _null(described: Json) -> list[None]:
    return [None] if {"type": "null"} in described.get("anyOf", ()) else []


def _operation(each: Operation, schema_of: dict[Any, Json], *, needs_key: bool) -> Json:
    refusal = {"content": {_JSON: {"schema": schema_of[each.refusal]}}}
    responses: Json = {str(status): {"description": "Refused", **refusal} for status in sorted(each.statuses)}
    responses["101" if each.answer is None else "200"] = {"description": "Done", **_content(each, schema_of)}
    described: Json = {"summary": each.summary, "responses": responses}
    parameters = [
        {"name": name, "in": "query", "schema": schema, "required": False} for name, schema in each.query
    ]
    if "{id}" in each.path:
        schema = {"type": "string", "minLength": 1, "maxLength": 200}
        parameters.append({"name": "id", "in": "path", "schema": schema, "required": True})
    if parameters:
        described["parameters"] = parameters
    if each.body is not None:
        described["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema_of[each.body]}}}
    if needs_key and not each.open:
        described["security"] = [{"key": []}]
    return described


def _content(each: Operation, schema_of: dict[Any, Json]) -> Json:
    """The kinds of answer."""
    if each.answer is None:
        return {}
    if each.answer is str:
        return {"content": {_HTML: {"schema": {"type": "string"}}}}
    kinds: Json = {_JSON: {"schema": schema_of[each.answer]}}
    if each.streams:
        kinds[_EVENTS] = {"schema": {"type": "string"}}
    return {"content": kinds}
