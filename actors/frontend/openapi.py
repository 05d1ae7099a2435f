"""The OpenAPI document of this server: everything that it serves."""

from __future__ import annotations

from typing import Any

import msgspec

from actors.frontend.access import Scope
from actors.frontend.operations import OPERATIONS, Json, Operation
from protocols.config import ModelCard

_JSON, _EVENTS = "application/json", "text/event-stream; charset=utf-8"
_TAGS = {Scope.ADMIN: "administration", Scope.WATCH: "watching", Scope.OPEN: "server"}


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
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(
            each, schema_of, needs_key=needs_key
        )
    for component in components.values():
        if "model" in component.get("properties", {}):
            named = component["properties"]["model"]
            component["properties"]["model"] = named | {"enum": [model.name, *_null(named)]}
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
    if each.scope in _TAGS:
        described["tags"] = [_TAGS[each.scope]]
    parameters = [
        {"name": name, "in": "query", "schema": schema, "required": False} for name, schema in each.query
    ]
    if "{id}" in each.path:
        schema = {"type": "string", "minLength": 1, "maxLength": 200}
        parameters.append({"name": "id", "in": "path", "schema": schema, "required": True})
    if parameters:
        described["parameters"] = parameters
    if each.body is not None:
        required = any(field.required for field in msgspec.structs.fields(each.body))
        content = {_JSON: {"schema": schema_of[each.body]}}
        described["requestBody"] = {"required": required, "content": content}
    if each.scope is Scope.ADMIN or (needs_key and each.scope is not Scope.OPEN):
        described["security"] = [{"key": []}]
    return described


def _content(each: Operation, schema_of: dict[Any, Json]) -> Json:
    """The kinds of answer."""
    if each.answer is None:
        return {}
    if each.answer is str:
        return {"content": {each.kind: {"schema": {"type": "string"}}}}
    kinds: Json = {_JSON: {"schema": schema_of[each.answer]}}
    if each.streams:
        kinds[_EVENTS] = {"schema": {"type": "string"}}
    return {"content": kinds}
