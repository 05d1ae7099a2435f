"""The OpenAPI document and the router, which are made of the same list."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from typing import Any

import jsonschema
import pytest

from actors.control.table import VERBS
from actors.frontend import admin_routes
from actors.frontend.access import Scope
from actors.frontend.operations import OPERATIONS, SCOPES
from actors.frontend.routes import Routes
from protocols.errors import UserError
from runtime import verbs
from tests.actors.frontend.harness import Raw, look, world

DOCUMENTED = {(each.method, each.path) for each in OPERATIONS}


async def test_what_can_answer_is_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """No handler without an operation, no operation without a handler, none of them twice."""
    handlers: dict[str, Any] = {}
    real = Routes._handlers

    def noted(routes: Routes, service: Any) -> Any:
        handlers.update(found := real(routes, service))
        return found

    monkeypatch.setattr(Routes, "_handlers", noted)
    async with world() as w:
        assert (await look(w.port, "/version")).status == 200
    assert {(method, path) for path, methods in handlers.items() for method in methods} == DOCUMENTED
    assert len(DOCUMENTED) == len(OPERATIONS)


async def test_the_document_shows_every_operation_and_every_one_answers() -> None:
    async with world() as w:
        document = (await look(w.port, "/openapi.json")).json
        shown = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        assert shown == DOCUMENTED
        raw = await Raw.connect(w.port)
        for path in document["paths"]:
            if SCOPES[path] is Scope.ADMIN:
                continue
            await raw.send(
                f"OPTIONS {path.replace('{id}', 'x')} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
            )
            answer = await raw.answer()
            methods = {method for method, served in DOCUMENTED if served == path}
            assert methods <= set(answer.headers["allow"].split(", ")), path
        await raw.aclose()


def test_the_table_of_the_docs_is_what_is_served() -> None:
    """Every path that stands in the first column of docs/api.md, and no other."""
    lines = (pathlib.Path(__file__).parents[3] / "docs" / "api.md").read_text().splitlines()
    begin = lines.index("| route | |")
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[begin + 2 :])
    told = [path for row in table for path in re.findall(r"`[A-Z]* ?(/[^` ]*)`", row.split("|")[1])]
    assert set(told) == {each.path for each in OPERATIONS}


async def test_whom_an_operation_is_for_is_shown() -> None:
    for keys in ((), ("secret",)):
        async with world(api_keys=keys) as w:
            paths = (await look(w.port, "/openapi.json")).json["paths"]
        for each in OPERATIONS:
            locked = each.scope is Scope.ADMIN or (bool(keys) and each.scope is not Scope.OPEN)
            assert ("security" in paths[each.path][each.method.lower()]) is locked, each.path


async def test_administrative_bodies_are_described() -> None:
    async with world() as w:
        document = (await look(w.port, "/openapi.json")).json
    for path, route in admin_routes.ROUTES.items():
        assert route.verb in {**verbs.VERBS, **VERBS}, path
        if "POST" not in route.methods:
            continue
        body = document["paths"][path]["post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"] | {"components": document["components"]}
        least = {"lora_name": "a", "lora_path": "/a", "model_path": "/a", "group_name": "g", "name": "w"}
        least |= {"names": ["w"], "dtypes": ["float32"], "shapes": [[1]], "server_args": {}}
        least |= {"master_address": "localhost", "master_port": 1, "world_size": 2, "session_id": "s"}
        jsonschema.validate(least, schema)
        assert admin_routes.fields(route, json.dumps(least).encode()) is not None
        if body["required"]:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({}, schema)
            with pytest.raises(UserError, match="Missing required parameter"):
                admin_routes.fields(route, b"")
        else:
            assert admin_routes.fields(route, b"") == {}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/load_lora_adapter", b'{"lora_name": 5, "lora_path": "/a"}', "lora_name"),
        ("/update_weights_from_tensor", b'{"serialized_named_tensors": ["x"]}', "serialized_named_tensors"),
        ("/update_weights_from_distributed", b'{"group_name": "g", "names": "w"}', "names"),
        ("/release_memory_occupation", b'{"tags": "weights"}', "tags"),
        ("/slow_down", b'{"forward_sleep_time": "much"}', "forward_sleep_time"),
        ("/abort_request", b"[1]", None),
        ("/flush_cache", b"{", None),
        ("/flush_cache", b'{"timeout": "soon"}', "timeout"),
    ],
)
def test_a_wrong_body_names_its_field(path: str, body: bytes, param: str | None) -> None:
    with pytest.raises(UserError) as refusal:
        admin_routes.fields(admin_routes.ROUTES[path], body)
    assert (refusal.value.body.status, refusal.value.body.param) == (400, param)


def test_fields_of_other_engines_are_left_out() -> None:
    route = admin_routes.ROUTES["/update_weights_from_disk"]
    body = b'{"model_path": "/m", "flush_cache": true, "load_format": null, "weight_version": "7"}'
    assert admin_routes.fields(route, body) == {"source": "/m", "version": "7"}
