"""The HTTP names of administrators' verbs: a frontend forwards them to the supervisor's admin socket.

A body is a JSON object, or nothing. The fields that a route names become the verb's; others are left out, as
the tools that call these names send fields of several engines. The answer is the verb's, with
`"success": true`; a refusal is an error document with the status that its kind has.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import msgspec

from protocols.config import Config
from protocols.errors import UserError, VerbError
from runtime import admin
from runtime.exchange import Exchange

STATUSES = {"usage": 400, "not_found": 404, "conflict": 409, "failed": 500, "timeout": 504}
"""HTTP status of each kind of refusal."""


@dataclasses.dataclass(frozen=True)
class AdminRoute:
    """A verb and the names that its fields have in HTTP. constants: fields that the path itself gives.
    refused: fields that must not be there, and why."""

    verb: str
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    methods: tuple[str, ...] = ("POST",)
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)


_CHANGE = {"weight_version": "version", "mode": "mode", "timeout": "timeout", "dry_run": "dry_run"}
_PICKLED = (
    "Pickled tensors can run code and are never loaded: "
    "write a safetensors file to shared memory and give its path."
)

ROUTES: Mapping[str, AdminRoute] = {
    "/v1/load_lora_adapter": AdminRoute(
        "lora.load",
        {"lora_name": "name", "lora_path": "path", "pinned": "pinned", "load_inplace": "replace"},
    ),
    "/v1/unload_lora_adapter": AdminRoute("lora.unload", {"lora_name": "name", "drain": "drain"}),
    "/pause_generation": AdminRoute("engine.pause", {"mode": "mode"}),
    "/continue_generation": AdminRoute("engine.resume"),
    "/flush_cache": AdminRoute("engine.flush-cache", methods=("GET", "POST")),
    "/update_weights_from_disk": AdminRoute(
        "weights.update", {"model_path": "source", "abort_all_requests": "abort", **_CHANGE}
    ),
    "/update_weights_from_tensor": AdminRoute(
        "weights.tensors", {"path": "path", **_CHANGE}, refused={"serialized_named_tensors": _PICKLED}
    ),
    "/init_weights_update_group": AdminRoute(
        "weights.join",
        {
            "group_name": "group",
            "master_address": "address",
            "master_port": "port",
            "rank_offset": "rank_offset",
            "world_size": "world_size",
            "backend": "backend",
            "timeout": "timeout",
        },
    ),
    "/destroy_weights_update_group": AdminRoute("weights.leave", {"group_name": "group"}),
    "/update_weights_from_distributed": AdminRoute(
        "weights.receive",
        {
            "group_name": "group",
            "names": "names",
            "dtypes": "dtypes",
            "shapes": "shapes",
            "receive_timeout": "receive_timeout",
            **_CHANGE,
        },
    ),
    "/get_weights_by_name": AdminRoute(
        "weights.get", {"name": "name", "truncate_size": "count"}, methods=("GET", "POST")
    ),
    "/get_weight_version": AdminRoute("weights.info", methods=("GET",)),
    "/abort_request": AdminRoute("request.abort", {"rid": "ids", "abort_all": "all"}),
    "/release_memory_occupation": AdminRoute("memory.release", {"tags": "tags"}),
    "/resume_memory_occupation": AdminRoute("memory.restore", {"tags": "tags"}),
    "/slow_down": AdminRoute("engine.slow-down", {"forward_sleep_time": "seconds"}),
    "/set_internal_state": AdminRoute("engine.set", {"server_args": "settings"}),
    "/freeze_gc": AdminRoute("engine.freeze-gc", methods=("GET", "POST")),
    "/get_server_info": AdminRoute("server.info", methods=("GET",)),
    "/get_model_info": AdminRoute("model.info", methods=("GET",)),
}
"""By path. GET where a tool calls it so."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


async def forward(config: Config, route: AdminRoute, exchange: Exchange) -> None:
    """Ask the supervisor and answer with what it says."""
    fields = _fields(route, await exchange.body())
    request: admin.Request = {**fields, **route.constants, "verb": route.verb}
    try:
        reply = await admin.call(admin.address(config.name, config.socket), request)
    except VerbError as error:
        status = STATUSES.get(error.code, 500)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        raise UserError(str(error), status=status, type=kind, code=error.code) from error
    except admin.Unreachable as error:
        raise UserError(str(error), status=503, type="server_error", retry_after=1) from error
    await exchange.respond(200, msgspec.json.encode({"success": True, **reply}))


def _fields(route: AdminRoute, body: bytes) -> admin.Request:
    try:
        document = _decode(body) if body.strip() else {}
        for name in route.refused.keys() & document.keys():
            raise UserError(route.refused[name], param=name)
        taken = {route.fields[name]: value for name, value in document.items() if name in route.fields}
        return msgspec.convert(taken, admin.Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"The body is not what {route.verb} takes: {error}.") from error


def table(config: Config) -> dict[str, dict[str, Any]]:
    """For the frontend's routes: by path and method, what answers."""
    return {
        path: dict.fromkeys(route.methods, functools.partial(forward, config, route))
        for path, route in ROUTES.items()
    }
