"""Changing the weights of a real company, by `actorctl` and by HTTP; the kills are in tests/faults."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from protocols.errors import VerbError
from tests.keyfile import keyfile
from tests.serving import Company, actorctl, serving
from tests.streams import Generation, admin_http, ask

PROMPT = list(range(3, 60))
TOKENS = 300
_NO_CHECKPOINT = r"not a regular file|holds no model|not an absolute path|is empty|File name too long"


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    keys = keyfile(tmp_path_factory.mktemp("keys"), "a")
    with serving("--executor", "hash", "--step-ms", "3", "--keys", str(keys)) as running:
        yield running


@pytest.fixture
def checkpoint(tmp_path: pathlib.Path) -> pathlib.Path:
    """What a hash executor takes for weights, and serves nothing of at the end."""
    path = tmp_path / "new.safetensors"
    path.write_text(f"weights of {tmp_path}")
    return path


def _stream(company: Company, tokens: int = TOKENS) -> Generation:
    return Generation(company, PROMPT, tokens, key="a")


def _info(company: Company) -> dict[str, Any]:
    return ask(company, "weights.info")


def _printed(company: Company, *arguments: str) -> dict[str, Any]:
    done = actorctl("weights", *arguments, "--name", company.name, "-o", "json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _code(company: Company, *arguments: str) -> tuple[int, str]:
    done = actorctl("weights", *arguments, "--name", company.name)
    return done.returncode, done.stderr


def _paused_amid(company: Company) -> Generation:
    """A stream that stands amid its answer. Where a busy machine let it end before, another is begun."""
    for _ in range(20):
        stream = _stream(company).begun()
        if ask(company, "engine.pause", mode="in_place")["running"]:
            return stream
        ask(company, "engine.resume")
        stream.done()
    raise AssertionError("every stream ended before generation could be paused")


@pytest.mark.parametrize("mode", ["keep", "abort"])
def test_what_becomes_of_those_that_run(company: Company, checkpoint: pathlib.Path, mode: str) -> None:
    before, truth = _info(company)["version"], _stream(company).done().ids
    stream = _paused_amid(company)
    ask(company, "weights.update", source=str(checkpoint), version=f"new {mode}", mode=mode)
    assert company.status()["standing"]["paused"] == "in_place", "as it was"
    ask(company, "engine.resume")
    late = _stream(company).done()
    assert (late.versions, late.finish) == ([f"new {mode}"], "length")
    stream.done()
    if mode == "abort":
        assert stream.finish == "abort"
        assert (stream.ids, stream.versions) == (truth[: len(stream.ids)], [before])
        return
    split = next(i for i, token in enumerate(stream.ids) if token != truth[i])
    assert stream.ids[split:] == late.ids[split:]
    assert stream.versions == [before, f"new {mode}"]


def test_those_that_run_may_end_first(company: Company, checkpoint: pathlib.Path) -> None:
    before, truth = _info(company)["version"], _stream(company).done().ids
    stream = _stream(company).begun()
    ask(company, "weights.update", source=str(checkpoint), version="new", mode="wait")
    assert (stream.done().ids, stream.versions) == (truth, [before])
    assert _stream(company, 5).done().versions == ["new"]


def test_who_waits_too_long_for_them_changes_nothing(company: Company, checkpoint: pathlib.Path) -> None:
    before = _info(company)
    for _ in range(20):
        stream = _stream(company, 600).begun()
        with contextlib.suppress(VerbError):
            ask(company, "weights.update", source=str(checkpoint), mode="wait", timeout=0.1)
            before = _info(company)
            stream.done()
            continue
        break
    else:
        raise AssertionError("every stream ended in time")
    assert _info(company) == before
    assert company.status()["standing"]["paused"] is None
    assert stream.done().versions == [before["version"]]


def test_nothing_is_taken_from_a_cache_of_other_weights(company: Company, checkpoint: pathlib.Path) -> None:
    _stream(company, 5).done()
    ask(company, "weights.update", source=str(checkpoint))
    scheduler = company.actor("scheduler.0")
    assert scheduler["pages_cached"] == 0
    _stream(company, 5).done()
    assert company.actor("scheduler.0")["cached_tokens_total"] == scheduler["cached_tokens_total"]


def test_actorctl(company: Company, checkpoint: pathlib.Path) -> None:
    first = _info(company)
    tried = _printed(company, "update", str(checkpoint), "--dry-run", "--version", "mine")
    assert tried == {"version": "mine", "changed": 1, "bytes": 8, "dry_run": True}
    assert _info(company) == first, "nothing has changed"
    done = actorctl("weights", "update", str(checkpoint), "--version", "mine", "--name", company.name)
    assert done.returncode == 0 and "The weights of version mine serve." in done.stdout
    info = _printed(company, "info", "--verify")
    assert (info["version"], info["before"]) == ("mine", first["version"])
    assert info["verified"] == ["executor.0"] and info["sources"][-1] == str(checkpoint)
    assert actorctl("weights", "info", "--name", company.name, "-o", "name").stdout == "mine\n"
    assert "uint32" in actorctl("weights", "get", "hash", "--name", company.name).stdout
    assert _printed(company, "rollback")["version"] == first["version"] == _info(company)["version"]


def test_refusals_of_actorctl(company: Company, tmp_path: pathlib.Path) -> None:
    before = _info(company)
    nowhere = tmp_path / "nowhere"
    assert _code(company, "update", str(nowhere)) == (4, f"actorctl: there is no {nowhere}.\n")
    (tmp_path / "x.bin").write_bytes(b"pickle")
    code, sentence = _code(company, "update", str(tmp_path / "x.bin"))
    assert code == 2 and "can run code" in sentence
    code, sentence = _code(company, "update", str(tmp_path))
    assert code == 2 and "no model.safetensors" in sentence and "can run code" in sentence
    status, document = admin_http(company, "/update_weights_from_disk", {"model_path": str(tmp_path)})
    assert (status, document["success"]) == (400, False) and "no model.safetensors" in document["message"]
    with pytest.raises(VerbError, match="no tensor 'nothing'"):
        ask(company, "weights.get", name="nothing")
    assert _info(company) == before


@pytest.mark.parametrize("pause", ["in_place", "retract"])
def test_nobody_waits_for_requests_that_are_held(
    company: Company, checkpoint: pathlib.Path, pause: str
) -> None:
    before = _info(company)
    ask(company, "engine.pause", mode=pause)
    try:
        with pytest.raises(VerbError, match="no request can end") as refusal:
            ask(company, "weights.update", source=str(checkpoint), mode="wait")
        assert refusal.value.code == "conflict" and company.status()["standing"]["paused"] == pause
    finally:
        ask(company, "engine.resume")
    assert _info(company) == before


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "code of its own"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"architectures": ["GPT2LMHeadModel"]}, "is for a GPT2LMHeadModel"),
        ([], "JSON object"),
    ],
)
def test_a_checkpoint_that_is_not_of_this_model(
    company: Company, tmp_path: pathlib.Path, config: object, reason: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerbError, match=reason):
        ask(company, "weights.update", source=str(tmp_path))


@pytest.mark.parametrize("kind", ["fifo", "directory", "relative", "zero", "empty", "long"])
def test_paths_that_are_no_files(company: Company, tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            (tmp_path / "d").mkdir()
            (tmp_path / "d" / "model.safetensors.index.json").mkdir()
            path = tmp_path / "d"
        case "relative":
            path = pathlib.Path("x.safetensors")
        case "empty":
            (tmp_path / "e.safetensors").touch()
            path = tmp_path / "e.safetensors"
        case "long":
            path = tmp_path / ("a" * 300)
        case _:
            path = tmp_path / "a\0b"
    with pytest.raises(VerbError, match=_NO_CHECKPOINT):
        ask(company, "weights.update", source=str(path))


def test_versions_are_short_texts(company: Company, checkpoint: pathlib.Path) -> None:
    for version in ("x" * 129, "a\nb"):
        with pytest.raises(VerbError, match="printable characters"):
            ask(company, "weights.update", source=str(checkpoint), version=version)


class TestHttp:
    """The names that other tools call."""

    def test_from_disk(self, company: Company, checkpoint: pathlib.Path) -> None:
        body = {
            "model_path": str(checkpoint),
            "load_format": None,
            "flush_cache": True,
            "weight_version": "disk",
        }
        status, document = admin_http(company, "/update_weights_from_disk", body)
        assert status == 200 and document["success"]
        assert admin_http(company, "/get_weight_version")[1]["version"] == "disk"
        status, document = admin_http(company, "/get_weights_by_name", {"name": "hash", "truncate_size": 1})
        assert status == 200 and len(document["values"]) == 1
        assert admin_http(company, "/update_weights_from_disk", {"model_path": "/nowhere"})[0] == 404
        assert admin_http(company, "/update_weights_from_disk", {})[0] == 400
        assert admin_http(company, "/update_weights_from_disk", body, key="a")[0] == 403

    def test_from_shared_memory(self, company: Company) -> None:
        """The writer may use its memory again as soon as it is answered, and go."""
        fd = os.memfd_create("tensors")
        os.write(fd, b"tensors of a trainer")
        path = f"/proc/{os.getpid()}/fd/{fd}"
        status, _ = admin_http(company, "/update_weights_from_tensor", {"path": path, "weight_version": "t"})
        assert status == 200
        truth = _stream(company, 50).done()
        os.pwrite(fd, b"something else", 0)
        os.close(fd)
        company.kill("executor.0")
        again = _stream(company, 50).done()
        assert (again.ids, again.versions) == (truth.ids, ["t"])

    def test_nothing_pickled(self, company: Company) -> None:
        body = {"serialized_named_tensors": ["gASV..."], "load_format": None}
        status, document = admin_http(company, "/update_weights_from_tensor", body)
        assert status == 400 and "never loaded" in document["error"]["message"]

    def test_groups(self, company: Company) -> None:
        body = {"group_name": "g", "master_address": "127.0.0.1", "master_port": 1, "rank_offset": 1}
        status, document = admin_http(company, "/init_weights_update_group", body | {"world_size": 1})
        assert status == 400 and "are not below 1" in document["error"]["message"]
        status, document = admin_http(company, "/init_weights_update_group", body | {"world_size": 2})
        assert status == 500 and "takes part in no group" in document["error"]["message"]
        body = {"group_name": "g", "names": ["a"], "dtypes": ["float32"], "shapes": [[2]]}
        assert admin_http(company, "/update_weights_from_distributed", body)[0] == 404
        status, _ = admin_http(company, "/update_weights_from_distributed", body | {"shapes": [[-1]]})
        assert status == 400
        status, _ = admin_http(company, "/update_weights_from_distributed", body | {"names": []})
        assert status == 400
