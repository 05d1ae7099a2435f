"""The open requests of a real company, slowing it down, draining it, and what actors tell of themselves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from protocols.errors import VerbError
from runtime import admin
from tests.faults.stage import until
from tests.serving import Company, actorctl, serving
from tests.streams import Stream, ask

LONG = 1500


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--executor", "hash", "--step-ms", "2", "--speculate", "ngram") as running:
        yield running


@pytest.fixture
def open_stream(company: Company) -> Iterator[Stream]:
    """A stream that waits."""
    ask(company, "engine.pause", mode="in_place")
    stream = Stream(company, tokens=LONG)
    until(lambda: ask(company, "request.list")["requests"], "it is known", 60)
    yield stream
    ask(company, "request.abort", all=True)
    ask(company, "engine.resume")
    stream.done()


def _ctl(company: Company, *arguments: str) -> subprocess.CompletedProcess[str]:
    return actorctl(*arguments, "--name", company.name)


def test_requests_are_listed_shown_and_ended(company: Company, open_stream: Stream) -> None:
    table = _ctl(company, "request", "list").stdout.splitlines()
    assert table[0].split() == ["ID", "STATE", "PROMPT", "OUTPUT", "MOST", "AGE"] and len(table) == 2
    (listed,) = ask(company, "request.list")["requests"]
    shown = _ctl(company, "request", "get", listed["id"], "-o", "json")
    assert json.loads(shown.stdout)["id"] == table[1].split()[0] == listed["id"]
    assert listed["max_tokens"] == LONG and listed["prompt_tokens"] > 0
    refused = _ctl(company, "request", "abort", listed["id"])
    assert refused.returncode == 2 and "-y" in refused.stderr
    ended = _ctl(company, "request", "abort", "-y", listed["id"], "-o", "yaml")
    assert yaml.safe_load(ended.stdout) == {"aborted": [listed["id"]], "not_found": []}
    assert open_stream.done()[1] == "abort"
    for verb in (("get",), ("abort", "-y")):
        again = _ctl(company, "request", *verb, listed["id"])
        assert again.returncode == 4 and f"no request {listed['id']} is open" in again.stderr


def test_a_call_is_named_as_its_client_knows_it(company: Company) -> None:
    """Both of its choices end, and nobody else's."""
    ask(company, "engine.pause", mode="in_place")
    twins, other = Stream(company, "twins", LONG, n=2), Stream(company, tokens=40)
    until(lambda: len(ask(company, "request.list")["requests"]) == 3, "three wait", 60)
    traces = [each["trace_id"] for each in ask(company, "request.list")["requests"]]
    (call,) = {each for each in traces if traces.count(each) == 2}
    assert ask(company, "request.get", ids=[f"req_{call}"])["trace_id"] == call
    ended = ask(company, "request.abort", ids=[f"cmpl-{call}", "0" * 32])
    assert len(ended["aborted"]) == 2 and ended["not_found"] == ["0" * 32]
    assert twins.done()[1] == "abort" and twins.id == f"req_{call}"
    with pytest.raises(VerbError, match=f"no request req_{call} is open"):
        ask(company, "request.abort", ids=[twins.id])
    assert [each["trace_id"] for each in ask(company, "request.list")["requests"]] != [call]
    ask(company, "engine.resume")
    assert other.done()[1] == "length"


def test_all_are_ended_at_once(company: Company) -> None:
    ask(company, "engine.pause", mode="in_place")
    streams = [Stream(company, f"number {i}") for i in range(3)]
    until(lambda: len(ask(company, "request.list")["requests"]) == 3, "three wait", 60)
    assert len(ask(company, "request.abort", all=True)["aborted"]) == 3
    assert [stream.done()[1] for stream in streams] == ["abort"] * 3
    ask(company, "engine.resume")
    assert ask(company, "request.abort", all=True)["aborted"] == []


@pytest.mark.parametrize("ids", [None, [], "x", ["0x1"], [1], ["f" * 17]])
def test_ids_that_are_none(company: Company, ids: Any) -> None:
    with pytest.raises(VerbError, match="needs ids of requests") as refusal:
        ask(company, "request.abort", ids=ids)
    assert refusal.value.code == "usage"


def test_settings_change_while_it_serves_and_outlive_their_actors(company: Company) -> None:
    done = _ctl(
        company, "engine", "set", "policy=lpm", "speculate_tokens=2", "step_delay=0.001", "-o", "json"
    )
    wanted = {"policy": "lpm", "speculate_tokens": 2, "speculate_rows": None, "step_delay": 0.001}
    assert json.loads(done.stdout)["settings"] == wanted, done.stderr
    for name in ("scheduler.0", "executor.0"):
        before = company.actor(name)["incarnation"]
        company.kill(name)
        until(lambda n=name, b=before: company.actor(n)["incarnation"] > b, "another", 60)  # type: ignore[misc]
    until(lambda: company.status()["state"] == "ready", "everybody is back", 60)
    assert Stream(company, tokens=40).done()[1] == "length"
    assert company.status()["standing"]["settings"] == wanted
    told = json.loads(_ctl(company, "engine", "info", "-o", "json").stdout)
    assert told["settings"] == wanted and told["options"]["speculate"] == "ngram"
    assert not {"api_keys", "tls_key"} & set(told["options"])
    slow = _ctl(company, "engine", "slow-down", "0")
    assert slow.returncode == 0 and "step_delay" in slow.stdout
    ask(company, "engine.set", settings={"policy": None, "speculate_tokens": None})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"port": 1},
        {"policy": "random"},
        {"step_delay": -1},
        {"step_delay": "much"},
        {"speculate_tokens": 999},
        {"speculate_rows": -1},
    ],
)
def test_settings_that_are_none_change_nothing(company: Company, settings: dict[str, Any]) -> None:
    before = company.status()["standing"]["settings"]
    with pytest.raises(VerbError) as refusal:
        ask(company, "engine.set", settings=settings)
    assert refusal.value.code == "usage"
    assert company.status()["standing"]["settings"] == before


def test_a_draining_company_lets_nobody_in_and_ends_what_is_open(company: Company) -> None:
    stream = Stream(company, tokens=200).begun()
    drained = _ctl(company, "engine", "drain", "-o", "json")
    assert json.loads(drained.stdout) == {"mode": "drain", "open": 0}, drained.stderr
    assert stream.done()[1] == "length"
    company.kill("frontend.0")
    until(lambda: company.actor("frontend.0")["state"] == "ready", "it is back", 60)
    until(lambda: company.status()["state"] == "ready", "all are", 60)
    refused = Stream(company, tokens=3)
    refused.join()
    assert refused.status == 503 and "draining" in refused.text
    assert _ctl(company, "engine", "drain").returncode == 5
    assert "(draining)" in _ctl(company, "status").stdout
    assert ask(company, "engine.resume") == {"mode": "drain"}
    assert Stream(company, tokens=3).done()[1] == "length"


def test_every_actor_tells_where_it_stands(company: Company) -> None:
    for name in company.pids():
        done = _ctl(company, "actor", "stack", name)
        assert done.returncode == 0 and "task " in done.stdout and "runtime/process.py" in done.stdout
    assert _ctl(company, "actor", "stack", "nobody").returncode == 4


def test_garbage_is_frozen_everywhere(company: Company) -> None:
    objects = json.loads(_ctl(company, "engine", "freeze-gc", "-o", "json").stdout)["objects"]
    assert set(objects) == set(company.pids()) and min(objects.values()) > 1000


def test_a_company_is_found_by_the_environment(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_NAME", company.name)
    assert json.loads(actorctl("status", "-o", "json").stdout)["name"] == company.name
    with pytest.raises(admin.Unreachable):
        admin.ask(admin.address("nobody-here"), {"verb": "status"})
