"""The HTTP names of administrators' verbs: a frontend forwards them to the supervisor's admin socket.

A body is a JSON object, or nothing. The fields that a route names become the verb's; others are left out, as
the tools that call these names send fields of several engines. The answer is the verb's, with
`"success": true`; a refusal is an error document, with `"success": false` and the status that its kind has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from protocols.config import Config
from protocols.errors import ErrorBody, UserError, VerbError
from protocols.openai import administration as bodies
from protocols.openai.administration import AdminBody, Carried, Sleeping
from protocols.openai.body import detail, read_body
from runtime import admin
from runtime.exchange import Exchange

STATUSES = {"usage": 400, "not_found": 404, "conflict": 409, "failed": 500, "timeout": 504}
"""HTTP status of each kind of refusal."""
KEYS = "/admin/keys"
"""Where the API keys are shown; see `actors.frontend.routes`."""


@dataclasses.dataclass(frozen=True)
class AdminRoute:
    """A verb, what it does, and what its body may hold. refused: fields that must not be there, and why.
    query: fields that are lists of words, and may stand in the address instead. told: what is told of the
    reply, and answer its type, where that is not all of it."""

    verb: str
    summary: str
    body: type[AdminBody] = AdminBody
    methods: tuple[str, ...] = ("POST",)
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    query: tuple[str, ...] = ()
    told: Callable[[admin.Reply], object] | None = None
    answer: Any = Carried


def _session(reply: admin.Reply) -> object:
    return reply["session_id"]


def _sleeping(reply: admin.Reply) -> Sleeping:
    return Sleeping(bool(reply["released"]))


_PICKLED = (
    "Pickled tensors can run code and are never loaded: "
    "write a safetensors file to shared memory and give its path."
)
_BOTH = ("GET", "POST")

_SERVER = AdminRoute("server.info", "Options and state of the company", methods=("GET",))
_MODEL = AdminRoute("model.info", "The model that is served", methods=("GET",))
_VERSION = AdminRoute("weights.info", "Which weights serve", methods=("GET",))

ROUTES: Mapping[str, AdminRoute] = {
    "/v1/load_lora_adapter": AdminRoute("lora.load", "Load a LoRA adapter", bodies.LoadAdapter),
    "/v1/unload_lora_adapter": AdminRoute("lora.unload", "Unload one", bodies.UnloadAdapter),
    "/pause_generation": AdminRoute("engine.pause", "Launch no more steps", bodies.PauseGeneration),
    "/continue_generation": AdminRoute("engine.resume", "Generate again"),
    "/flush_cache": AdminRoute("engine.flush-cache", "Forget cached prefixes", methods=_BOTH),
    "/update_weights_from_disk": AdminRoute(
        "weights.update", "Serve another checkpoint", bodies.UpdateFromDisk
    ),
    "/update_weights_from_tensor": AdminRoute(
        "weights.tensors",
        "Serve tensors of a file in shared memory",
        bodies.UpdateFromTensor,
        refused={"pickled": _PICKLED},
    ),
    "/init_weights_update_group": AdminRoute("weights.join", "Meet a trainer's group", bodies.InitGroup),
    "/destroy_weights_update_group": AdminRoute("weights.leave", "Leave it", bodies.DestroyGroup),
    "/update_weights_from_distributed": AdminRoute(
        "weights.receive", "Serve the tensors that a trainer sends", bodies.UpdateFromGroup
    ),
    "/get_weights_by_name": AdminRoute(
        "weights.get", "The first numbers of a tensor", bodies.GetWeights, methods=_BOTH
    ),
    **dict.fromkeys(("/get_weight_version", "/weight_version"), _VERSION),
    "/abort_request": AdminRoute("request.abort", "End requests", bodies.AbortRequest),
    "/open_session": AdminRoute(
        "session.open", "Open a session", bodies.OpenSession, told=_session, answer=str
    ),
    "/close_session": AdminRoute("session.close", "Close one", bodies.CloseSession),
    "/start_expert_distribution_record": AdminRoute("experts.start", "Count experts", methods=_BOTH),
    "/stop_expert_distribution_record": AdminRoute("experts.stop", "Count no more", methods=_BOTH),
    "/dump_expert_distribution_record": AdminRoute(
        "experts.dump", "Rows of each expert since the last time", methods=_BOTH
    ),
    "/release_memory_occupation": AdminRoute("memory.release", "Give memory back", bodies.Occupation),
    "/resume_memory_occupation": AdminRoute("memory.restore", "Take it again", bodies.Occupation),
    "/slow_down": AdminRoute("engine.slow-down", "Wait before each step", bodies.SlowDown),
    "/set_internal_state": AdminRoute("engine.set", "Change settings", bodies.InternalState),
    "/start_profile": AdminRoute(
        "profile.start", "Record what the executors' steps do", bodies.StartProfile, methods=_BOTH
    ),
    "/stop_profile": AdminRoute("profile.stop", "Write the files and tell where", methods=_BOTH),
    "/freeze_gc": AdminRoute("engine.freeze-gc", "Collect garbage once and for all", methods=_BOTH),
    **dict.fromkeys(("/get_server_info", "/server_info"), _SERVER),
    **dict.fromkeys(("/get_model_info", "/model_info"), _MODEL),
    "/reset_prefix_cache": AdminRoute("engine.flush-cache", "Forget cached prefixes"),
    "/sleep": AdminRoute("engine.sleep", "Let requests end and give all memory back", bodies.Sleep),
    "/wake_up": AdminRoute(
        "engine.wake",
        "Take memory again, and generate once none is missing",
        bodies.Occupation,
        query=("tags",),
    ),
    "/is_sleeping": AdminRoute(
        "server.info", "Whether memory is given back", methods=("GET",), told=_sleeping, answer=Sleeping
    ),
}
"""By path. GET where a tool calls it so."""

_DECODERS = {route.body: msgspec.json.Decoder(route.body) for route in ROUTES.values()}


async def forward(config: Config, route: AdminRoute, exchange: Exchange) -> None:
    """Ask the supervisor and answer with what it says."""
    exchange.document = refusal
    request = {**fields(route, await exchange.body(), exchange.head.query), "verb": route.verb}
    with _told_by_its_http_name(route.body):
        reply = await asked(config, request)
    told = route.told(reply) if route.told is not None else {"success": True, **reply}
    await exchange.respond(200, msgspec.json.encode(told))


def refusal(body: ErrorBody) -> bytes:
    """The JSON of one: an error document, and what the tools look for that call these names."""
    return msgspec.json.encode({"success": False, "message": body.message, "error": detail(body)})


async def asked(config: Config, request: admin.Request) -> admin.Reply:
    """The supervisor's answer to a verb. Raises UserError."""
    try:
        return await admin.call(admin.address(config.name, config.socket), request)
    except VerbError as error:
        status = STATUSES.get(error.code, 500)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        raise UserError(str(error), status=status, type=kind, code=error.code) from error
    except admin.Unreachable as error:
        raise UserError(str(error), status=503, type="server_error", retry_after=1) from error


def fields(route: AdminRoute, data: bytes, query: str = "") -> admin.Request:
    """The fields of a verb, from a request's body and query. Raises UserError 400."""
    body: AdminBody = read_body(_DECODERS[route.body], data.strip() or b"{}")
    for name, sentence in route.refused.items():
        if getattr(body, name) is not None:
            raise UserError(sentence, param=_http_name(route.body, name))
    said: dict[str, Any] = msgspec.to_builtins(msgspec.structs.asdict(body))
    listed = urllib.parse.parse_qs(query) if route.query else {}
    said |= {name: listed[name] for name in route.query if name in listed}
    return {name: value for name, value in said.items() if value is not None}


@contextlib.contextmanager
def _told_by_its_http_name(body: type[AdminBody]) -> Iterator[None]:
    """A refusal that begins with the verb's name of a field has that of HTTP, which is also its `param`."""
    try:
        yield
    except UserError as error:
        word, space, rest = error.body.message.partition(" ")
        if error.body.code != "usage" or word not in body.__struct_fields__:
            raise
        name = _http_name(body, word)
        told = msgspec.structs.replace(error.body, message=f"{name}{space}{rest}", param=name)
        raise UserError.from_body(told) from error


def _http_name(body: type[AdminBody], attribute: str) -> str:
    """What HTTP calls a field."""
    return next(each.encode_name for each in msgspec.structs.fields(body) if each.name == attribute)


def table(config: Config) -> dict[str, dict[str, Any]]:
    """The handlers of these routes, by path and method."""
    return {
        path: dict.fromkeys(route.methods, functools.partial(forward, config, route))
        for path, route in ROUTES.items()
    }
