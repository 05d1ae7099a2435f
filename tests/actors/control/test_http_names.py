"""Every HTTP name of an administrator's verb: at the right moment, at the wrong one, with a wrong body, and
for those who may not. A route without its case fails here."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actors.frontend.admin_routes import ROUTES
from protocols.adapters import CONFIG, WEIGHTS
from tests.keyfile import keyfile
from tests.serving import Company, serving
from tests.streams import admin_http, ask

Body = dict[str, Any]
Do = Callable[[Company, pathlib.Path], object]


def _nothing(_company: Company, _folder: pathlib.Path) -> None:
    pass


def _verb(verb: str, /, **fields: Any) -> Do:
    return lambda company, _folder: ask(company, verb, **fields)


@dataclasses.dataclass(frozen=True)
class Refused:
    """A wish that is refused: with what status, and what is done before and after."""

    status: int
    body: Body
    before: Do = _nothing
    after: Do = _nothing


@dataclasses.dataclass(frozen=True)
class Route:
    """How a name is called. body: of the right request, at which `answer` is told. before, after: around it.
    refused: another one. needs: fields that must be there. wrong: a body of wrong types."""

    answer: str
    body: Body = dataclasses.field(default_factory=dict)
    before: Do = _nothing
    after: Do = _nothing
    refused: Refused | None = None
    needs: tuple[str, ...] = ()
    wrong: Body = dataclasses.field(default_factory=lambda: {"timeout": "soon"})


_pause, _resume = _verb("engine.pause", mode="in_place"), _verb("engine.resume")


def _load(company: Company, folder: pathlib.Path) -> None:
    ask(company, "lora.load", name="a", path=str(folder / "adapter"))


def _profile(company: Company, folder: pathlib.Path) -> None:
    ask(company, "profile.start", folder=str(folder))


_unload = _verb("lora.unload", name="a")
_start, _stop = _verb("experts.start"), _verb("experts.stop")
_open = _verb("session.open", id="s")
_close = _verb("session.close", id="s")
_release = _verb("memory.release", tags=["kv_cache"])
_restore = _verb("memory.restore")
_sleep, _wake = _verb("engine.sleep"), _verb("engine.wake")
_stop_profile = _verb("profile.stop")
_KV: Body = {"tags": ["kv_cache"]}
_NOWHERE: Body = {"model_path": "/nowhere"}
_GROUP: Body = {"group_name": "g", "master_address": "127.0.0.1", "master_port": 1, "world_size": 2}
_SHAPES: Body = {"group_name": "g", "names": ["a"], "dtypes": ["float32"], "shapes": [[2]]}
_ADAPTER: Body = {"lora_name": "a", "lora_path": "adapter"}

CASES: dict[str, Route] = {
    "/v1/load_lora_adapter": Route(
        "digest",
        _ADAPTER,
        after=_unload,
        refused=Refused(409, _ADAPTER, _load, _unload),
        needs=("lora_name", "lora_path"),
        wrong={"pinned": "yes"},
    ),
    "/v1/unload_lora_adapter": Route(
        "id",
        {"lora_name": "a", "drain": True},
        before=_load,
        refused=Refused(404, {"lora_name": "a"}),
        needs=("lora_name",),
        wrong={"drain": 1},
    ),
    "/pause_generation": Route(
        "running",
        {"mode": "retract"},
        after=_resume,
        refused=Refused(409, {}, _pause, _resume),
        wrong={"mode": ["abort"]},
    ),
    "/continue_generation": Route("mode", before=_pause, refused=Refused(409, {})),
    "/flush_cache": Route("pages"),
    "/update_weights_from_disk": Route(
        "checksum",
        {"model_path": "new.safetensors", "weight_version": "7", "flush_cache": True},
        refused=Refused(404, _NOWHERE),
        needs=("model_path",),
        wrong={"weight_version": 7},
    ),
    "/update_weights_from_tensor": Route(
        "checksum",
        {"path": "new.safetensors"},
        refused=Refused(400, {"serialized_named_tensors": ["gASV"]}),
        wrong={"path": 1},
    ),
    "/init_weights_update_group": Route(
        "",
        _GROUP,
        refused=Refused(400, _GROUP | {"world_size": 1}),
        needs=tuple(_GROUP),
        wrong={"master_port": "x"},
    ),
    "/destroy_weights_update_group": Route(
        "",
        {"group_name": "g"},
        refused=Refused(404, {"group_name": "g"}),
        needs=("group_name",),
        wrong={"group_name": 5},
    ),
    "/update_weights_from_distributed": Route(
        "",
        _SHAPES,
        refused=Refused(400, _SHAPES | {"names": []}),
        needs=tuple(_SHAPES),
        wrong={"shapes": [["x"]]},
    ),
    "/get_weights_by_name": Route(
        "values",
        {"name": "hash", "truncate_size": 1},
        refused=Refused(404, {"name": "nothing"}),
        needs=("name",),
        wrong={"truncate_size": "all"},
    ),
    "/get_weight_version": Route("version"),
    "/abort_request": Route(
        "aborted",
        {"abort_all": True},
        refused=Refused(404, {"rid": "ffff"}),
        wrong={"rid": 5},
    ),
    "/open_session": Route(
        "session_id",
        {"capacity_of_str_len": 100, "session_id": "s"},
        after=_close,
        refused=Refused(409, {"session_id": "s"}, _open, _close),
        wrong={"capacity_of_str_len": "much"},
    ),
    "/close_session": Route(
        "session_id",
        {"session_id": "s"},
        before=_open,
        refused=Refused(404, {"session_id": "s"}),
        needs=("session_id",),
        wrong={"session_id": 5},
    ),
    "/start_expert_distribution_record": Route(
        "recording", after=_stop, refused=Refused(409, {}, _start, _stop)
    ),
    "/stop_expert_distribution_record": Route("recording", before=_start, refused=Refused(409, {})),
    "/dump_expert_distribution_record": Route("layers", before=_start, after=_stop),
    "/release_memory_occupation": Route(
        "bytes",
        _KV,
        after=_restore,
        refused=Refused(409, _KV, _release, _restore),
        wrong={"tags": "kv_cache"},
    ),
    "/resume_memory_occupation": Route(
        "bytes", _KV, before=_release, refused=Refused(409, _KV), wrong={"tags": [1]}
    ),
    "/slow_down": Route(
        "settings",
        {"forward_sleep_time": 0},
        refused=Refused(400, {"forward_sleep_time": 61}),
        wrong={"forward_sleep_time": "much"},
    ),
    "/set_internal_state": Route(
        "settings",
        {"server_args": {"policy": None}},
        refused=Refused(409, {"server_args": {"speculate_tokens": 2}}),
        needs=("server_args",),
        wrong={"server_args": []},
    ),
    "/start_profile": Route(
        "files",
        {"num_steps": 5, "activities": ["CPU", "GPU"], "with_stack": True, "profile_by_stage": False},
        after=_stop_profile,
        refused=Refused(409, {}, _profile, _stop_profile),
        wrong={"num_steps": "many"},
    ),
    "/stop_profile": Route("lost", before=_profile, refused=Refused(409, {})),
    "/freeze_gc": Route("objects"),
    "/get_server_info": Route("options"),
    "/server_info": Route("options"),
    "/get_model_info": Route("served_model_name"),
    "/model_info": Route("served_model_name"),
    "/weight_version": Route("version"),
    "/reset_prefix_cache": Route("pages"),
    "/sleep": Route(
        "bytes", {"level": 1}, after=_wake, refused=Refused(409, {}, _sleep, _wake), wrong={"mode": 3}
    ),
    "/wake_up": Route("bytes", before=_sleep, refused=Refused(409, {}), wrong={"tags": "weights"}),
    "/is_sleeping": Route("is_sleeping"),
}
"""By path. Those without an `answer` need a trainer, which `tests/faults/test_trainer.py` has: the hash
executor takes part in no group."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Files that bodies name."""
    path: pathlib.Path = tmp_path_factory.mktemp("files")
    (path / "new.safetensors").write_bytes(b"weights")
    (path / "adapter").mkdir()
    (path / "adapter" / CONFIG).write_text("{}")
    (path / "adapter" / WEIGHTS).write_bytes(b"adapter")
    return path


@pytest.fixture(scope="module")
def company(folder: pathlib.Path) -> Iterator[Company]:
    keys = keyfile(folder, "user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        with serving("--executor", "hash", "--keys", str(keys)) as running:
            yield running


def _placed(body: Body, folder: pathlib.Path) -> Body:
    names = ("new.safetensors", "adapter")
    return {key: str(folder / value) if value in names else value for key, value in body.items()}


def test_every_name_has_a_case() -> None:
    assert CASES.keys() == ROUTES.keys()


@pytest.mark.parametrize("path", CASES)
def test_at_the_right_moment(company: Company, folder: pathlib.Path, path: str) -> None:
    case, body = CASES[path], _placed(CASES[path].body, folder)
    for method in ROUTES[path].methods:
        if method == "GET" and case.needs:
            continue
        case.before(company, folder)
        status, document = admin_http(company, path, None if method == "GET" else body)
        case.after(company, folder)
        if ROUTES[path].told is not None:
            document = {"success": True, case.answer: document}
        if case.answer:
            assert (status, document.get("success")) == (200, True), document
            assert case.answer in document
        else:
            assert status in (404, 500) and "group" in document["error"]["message"]


@pytest.mark.parametrize("path", [path for path, case in CASES.items() if case.refused is not None])
def test_at_the_wrong_one(company: Company, folder: pathlib.Path, path: str) -> None:
    refused = CASES[path].refused
    assert refused is not None
    refused.before(company, folder)
    status, document = admin_http(company, path, _placed(refused.body, folder))
    refused.after(company, folder)
    assert status == refused.status, document
    assert document["error"]["type"] == "invalid_request_error" and document["error"]["message"].endswith(".")
    assert document["success"] is False and document["message"] == document["error"]["message"]


@pytest.mark.parametrize("path", [path for path, route in ROUTES.items() if "POST" in route.methods])
def test_wrong_bodies(company: Company, path: str) -> None:
    case, before = CASES[path], company.status()["standing"]
    for wrong in (case.wrong, [1], "text", {"timeout": [[["deep"]]]}):
        status, document = admin_http(company, path, wrong)
        assert status == 400, (wrong, document)
    for name in case.needs:
        less = {key: value for key, value in case.body.items() if key != name}
        status, document = admin_http(company, path, less)
        assert (status, document["error"]["param"]) == (400, name)
    assert _raw(company, path, body=b"{")[0] == 400
    assert company.status()["standing"] == before


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/slow_down", {"forward_sleep_time": -1}, "forward_sleep_time", "must be a number from 0 to 60."),
        (
            "/open_session",
            {"capacity_of_str_len": 0},
            "capacity_of_str_len",
            "must be a number from 1 to 67108864.",
        ),
        ("/open_session", {"session_id": "\n"}, "session_id", "must be 128 printable characters at most."),
        (
            "/get_weights_by_name",
            {"name": "hash", "truncate_size": -1},
            "truncate_size",
            "must be a number from 0 to 10000.",
        ),
        ("/pause_generation", {"mode": "x"}, "mode", "must be one of abort, retract, in_place, wait."),
    ],
)
def test_a_refusal_has_the_name_that_was_sent(
    company: Company, path: str, body: Body, param: str, words: str
) -> None:
    status, document = admin_http(company, path, body)
    assert (status, document["error"]["param"]) == (400, param)
    assert document["error"]["message"] == f"{param} {words}"


def test_waking_by_and_by(company: Company) -> None:
    """As trainers do it that need the room for the weights first."""
    for path, asleep in (
        ("/sleep?level=2", True),
        ("/wake_up?tags=weights", True),
        ("/wake_up?tags=kv_cache&tags=cuda_graph", False),
    ):
        status, document = admin_http(company, path, {})
        assert status == 200, document
        assert admin_http(company, "/is_sleeping", None) == (200, {"is_sleeping": asleep})
    assert company.status()["standing"]["paused"] is None


def test_a_name_that_there_is_not(company: Company) -> None:
    for key, status in (("boss", 404), ("user", 404), ("wrong", 401)):
        told, document = _raw(company, "/v1/load_adapter", {"authorization": f"Bearer {key}"}, method="POST")
        assert (told, document["error"]["code"] == "not_found") == (status, status == 404)


@pytest.mark.parametrize("path", CASES)
def test_who_may_not(company: Company, path: str) -> None:
    """Nobody without an administrator's key, no web page, and nobody under a strange name."""
    before = company.status()["standing"]
    boss, own = {"authorization": "Bearer boss"}, f"http://{company.host}:{company.port}"
    for headers, status, code in (
        ({}, 401, "invalid_api_key"),
        ({"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ({"authorization": "Bearer user"}, 403, "key_not_allowed"),
        (boss | {"host": "evil.example"}, 403, "host_not_allowed"),
        (boss | {"origin": "http://evil.example"}, 403, "origin_not_allowed"),
        (boss | {"origin": own}, 403, "origin_not_allowed"),
    ):
        told, document = _raw(company, path, headers)
        assert (told, document["error"]["code"]) == (status, code), headers
    assert _raw(company, path, boss, method="DELETE")[0] == 405
    assert company.status()["standing"] == before


def _raw(
    company: Company,
    path: str,
    headers: dict[str, str] | None = None,
    *,
    body: bytes = b"{}",
    method: str = "",
) -> tuple[int, Any]:
    """A request with exactly these headers; an administrator's, where there are none."""
    method = method or ROUTES[path].methods[-1]
    given = {"authorization": "Bearer boss"} if headers is None else headers
    connection = http.client.HTTPConnection(company.host, company.port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body if method == "POST" else None, given)
        answer = connection.getresponse()
        return answer.status, json.load(answer)
