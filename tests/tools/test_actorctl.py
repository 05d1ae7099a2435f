"""actorctl as people and scripts use it: its output, its exit codes, its sentences."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

import httpx2
import pytest
import yaml
from huggingface_hub import errors

from actors.control.rates import rates
from tests.faults.stage import until
from tests.patience import PATIENCE
from tests.serving import Company, actorctl, actorctl_process, serving
from tools.actorctl import hub
from tools.actorctl.serve import DEMO_MODEL
from tools.actorctl.sizes import ByteSize
from tools.actorctl.status import duration

NAMES = ["executor.0", "scheduler.0", "tokenizer.0", "frontend.0"]


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--executor", "hash") as running:
        yield running


def test_status_as_json_names_every_actor(company: Company) -> None:
    document = company.status()
    assert document["state"] == "ready"
    assert document["model"] == "troupe-demo"
    assert [actor["name"] for actor in document["actors"]] == NAMES
    for actor in document["actors"]:
        assert {"kind", "state", "pid", "incarnation", "restarts"} <= set(actor)
        assert actor["pid"] > 0 and actor["state"] == "ready"


def test_who_only_moves_mail_takes_no_core_from_who_computes(company: Company) -> None:
    pids = {actor["name"]: actor["pid"] for actor in company.status()["actors"]}
    policies = {name: os.sched_getscheduler(pid) for name, pid in pids.items()}
    assert policies.pop("executor.0") == os.SCHED_OTHER
    assert set(policies.values()) == {os.SCHED_BATCH}


def test_status_for_people(company: Company) -> None:
    done = actorctl("status", "--name", company.name)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{company.name}: ready, serving troupe-demo at http://127.0.0.1:")
    assert lines[2].split() == ["NAME", "STATE", "PID", "INCARNATION", "RESTARTS", "UPTIME"]
    assert [line.split()[0] for line in lines[3:]] == NAMES


@pytest.mark.parametrize("command", [("status",), ("actor", "list"), ("top",)])
def test_the_other_formats(company: Company, command: tuple[str, ...]) -> None:
    ask = (*command, "--name", company.name, "-o")
    assert actorctl(*ask, "name").stdout.split() == NAMES
    actors = json.loads(actorctl(*ask, "json").stdout)["actors"]
    assert [actor["name"] for actor in actors] == NAMES
    assert [actor["name"] for actor in yaml.safe_load(actorctl(*ask, "yaml").stdout)["actors"]] == NAMES
    assert "NAME" in actorctl(*ask, "wide").stdout


def test_without_keys_there_are_none_to_list_or_to_read_again(company: Company) -> None:
    for verb, sentence in (("list", "has no keys"), ("reload", "has no key file")):
        done = actorctl("keys", verb, "--name", company.name)
        assert (done.returncode, done.stdout) == (5, "") and sentence in done.stderr


def test_the_tree_shows_strategies_and_actors(company: Company) -> None:
    text = actorctl("actor", "tree", "--name", company.name).stdout
    assert "one_for_one" in text and all(name in text for name in NAMES)
    tree = json.loads(actorctl("actor", "tree", "--name", company.name, "-o", "json").stdout)["tree"]
    assert {child["name"] for child in tree["children"]} == {"replicas", "edge"}


def test_one_actor(company: Company) -> None:
    actor = json.loads(actorctl("actor", "get", "scheduler.0", "--name", company.name, "-o", "json").stdout)
    assert actor["pages_total"] == actor["pages_free"] + actor["pages_cached"] + actor["pages_owned"]
    missing = actorctl("actor", "get", "nobody", "--name", company.name)
    assert missing.returncode == 4 and "no actor 'nobody'" in missing.stderr


@pytest.mark.parametrize("verb", [("kill", "-y"), ("restart",)])
def test_a_replaced_actor_comes_back(company: Company, verb: tuple[str, ...]) -> None:
    before = company.actor("tokenizer.0")
    done = actorctl("actor", *verb, "tokenizer.0", "--name", company.name)
    assert done.returncode == 0, done.stderr
    _await_incarnation(company, "tokenizer.0", before["incarnation"] + 1)
    now = company.actor("tokenizer.0")
    assert now["pid"] != before["pid"]
    assert now["restarts"] == before["restarts"] + 1


def test_kill_needs_a_yes(company: Company) -> None:
    done = actorctl("actor", "kill", "tokenizer.0", "--name", company.name)
    assert done.returncode == 2 and "-y" in done.stderr


def test_it_says_what_it_serves_and_where(company: Company) -> None:
    (line,) = [line for line in company.stderr().splitlines() if line.startswith("ready in ")]
    assert line.endswith(f" s: serving troupe-demo at http://127.0.0.1:{company.port}")


def test_a_death_is_told_once(company: Company) -> None:
    told = "tokenizer.0 was killed on request; replaced at once\n"
    before, incarnation = company.stderr().count(told), company.actor("tokenizer.0")["incarnation"]
    assert actorctl("actor", "kill", "-y", "tokenizer.0", "--name", company.name).returncode == 0
    _await_incarnation(company, "tokenizer.0", incarnation + 1)
    text = company.stderr()
    assert text.count(told) == before + 1
    assert "actor lost" not in text


def test_whoever_asks_for_json_reads_nothing_else() -> None:
    with serving("--executor", "hash", "--log-format", "json") as company:
        assert actorctl("actor", "kill", "-y", "tokenizer.0", "--name", company.name).returncode == 0
        _await_incarnation(company, "tokenizer.0", 2)
        lines = [json.loads(line) for line in company.stderr().splitlines()]
    events = [line["event"] for line in lines]
    assert any(f"serving troupe-demo at http://127.0.0.1:{company.port}" in event for event in events)
    assert events.count("actor lost") == 1


def _await_incarnation(company: Company, name: str, incarnation: int) -> None:
    def is_back() -> bool:
        now = company.actor(name)
        return now["incarnation"] >= incarnation and now["state"] == "ready"

    until(is_back, f"incarnation {incarnation} of {name}")


def test_stop_now_does_not_wait_for_open_requests() -> None:
    with serving("--executor", "hash", "--step-ms", "50", "--drain-seconds", "600") as running:
        answer = http.client.HTTPConnection(running.host, running.port, timeout=60)
        asked = {"model": running.model, "prompt": "on and on", "max_tokens": 2000, "ignore_eos": True}
        headers = {"content-type": "application/json"}
        answer.request("POST", "/v1/completions", json.dumps(asked | {"stream": True}), headers)
        assert answer.getresponse().readline().startswith(b"data:")
        assert actorctl("stop", "--now", "--name", running.name).returncode == 0
        assert running.process.wait(PATIENCE) == 1
        answer.close()


def test_nobody_there() -> None:
    done = actorctl("status", "--name", "nobody-here")
    assert done.returncode == 69
    assert done.stderr.startswith("actorctl: no company named nobody-here is running (")


def test_a_second_company_of_the_same_name_is_refused(company: Company) -> None:
    done = actorctl_process("serve", "--name", company.name, "--port", "0", "--executor", "hash")
    assert done.returncode == 1
    assert "is running" in done.stderr and "Traceback" not in done.stderr


def test_a_busy_port_is_one_sentence(company: Company) -> None:
    done = actorctl_process(
        "serve", "--name", _fresh_name(), "--port", str(company.port), "--executor", "hash"
    )
    assert done.returncode == 1
    assert f"port {company.port}" in done.stderr and "Traceback" not in done.stderr


def _fresh_name() -> str:
    """A name that another run of these tests on this machine does not have."""
    return f"test-{uuid.uuid4().hex[:12]}"


def _model(folder: pathlib.Path, **changes: object) -> pathlib.Path:
    shutil.copytree(DEMO_MODEL, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "no model directory"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (shutil.rmtree(folder), folder.touch()), "is a file; a model is a directory"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (lambda folder: _model(folder, hidden_size=128), "shape"),
    ],
)
def test_a_model_that_cannot_be_served_is_one_sentence(tmp_path: pathlib.Path, break_it, words) -> None:  # type: ignore[no-untyped-def]
    folder = _model(tmp_path / "broken")
    break_it(folder)
    done = actorctl_process("serve", str(folder), "--name", _fresh_name(), "--port", "0")
    assert done.returncode == 1, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_an_unknown_architecture_is_refused_before_anything_starts(tmp_path: pathlib.Path) -> None:
    folder = _model(tmp_path / "strange", architectures=["Nonesuch"])
    done = actorctl_process("serve", str(folder), "--name", _fresh_name(), "--port", "0")
    assert done.returncode == 1
    assert done.stderr == (
        "actorctl: unsupported architecture Nonesuch: it is neither built in nor a causal language model of "
        "the installed transformers.\n"
    )


def test_the_hub_refuses_in_words() -> None:
    request = httpx2.Request("GET", "https://hub.example")
    missing, broken = (httpx2.Response(status, request=request) for status in (404, 502))
    assert hub.reason(errors.GatedRepoError("x", response=missing)).endswith("given you access to it")
    assert hub.reason(errors.RepositoryNotFoundError("x", response=missing)).startswith("the hub has no")
    assert hub.reason(errors.LocalEntryNotFoundError("x")) == "the hub cannot be reached"
    assert hub.reason(errors.HfHubHTTPError("x", response=broken)) == "the hub answered 502"
    assert hub.reason(OSError(28, "No space left on device")).endswith(": No space left on device")
    assert hub.reason(errors.HFValidationError("x")) == "that is no name of a model on the hub"


@pytest.mark.parametrize(
    "option",
    [
        ("--port", "70000"),
        ("--dtype", "int3"),
        ("--kv-memory", "much"),
        ("--depth", "0"),
        ("--page-size", "0"),
        ("--no-such-option",),
        ("--api-key", ""),
        ("--page-size", "1024", "--chunk-size", "512"),
        ("--attention-backend", "flash,torch"),
        ("--cuda-graphs", "1,65"),
        ("--memory-fraction", "1.5"),
        ("--lora", "x"),
        ("--lora", "=x"),
    ],
)
def test_absurd_options_are_usage_errors(option: tuple[str, ...]) -> None:
    done = actorctl("serve", *option)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_context_beyond_the_models_own_is_refused() -> None:
    done = actorctl("serve", "--max-model-len", "999999")
    assert done.returncode == 1 and "exceeds the model's context" in done.stderr


def test_sizes() -> None:
    size = ByteSize()
    assert size.convert("2GiB", None, None) == 2 << 30
    assert size.convert("800M", None, None) == 800_000_000
    assert size.convert("1.5k", None, None) == 1500
    assert size.convert("17", None, None) == 17


def test_durations() -> None:
    spans = [12.34, 245, 3 * 3600 + 720, 5 * 86400 + 7200]
    assert [duration(span) for span in spans] == ["12.3s", "4m05s", "3h12m", "5d02h"]


def test_rates_start_again_with_a_new_incarnation() -> None:
    zero = {
        "pages_total": 0,
        "pages_free": 0,
        "pages_available": 0,
        "running": 0,
        "waiting": 0,
        "step_us_total": 0,
        "messages_out": 0,
        "drafted_total": 0,
        "accepted_total": 0,
    }
    actor = zero | {"name": "s", "kind": "scheduler", "generated_tokens_total": 900}
    before = {"actors": [actor | {"incarnation": 1, "messages_in": 1000}]}
    same = {"actors": [actor | {"incarnation": 1, "messages_in": 1500}]}
    after = {"actors": [actor | {"incarnation": 2, "messages_in": 40}]}
    assert rates(before, same, 2.0)[0]["in_rate"] == 250
    assert rates(before, after, 2.0)[0]["in_rate"] == 20
    guessing = {"actors": [actor | same["actors"][0] | {"drafted_total": 8, "accepted_total": 6}]}
    assert rates(before, guessing, 2.0)[0]["guessed"] == "75 %"
    assert rates(before, same, 2.0)[0]["guessed"] is None
