"""Pausing, resuming and flushing a real company, by `actorctl` and by HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from protocols.errors import VerbError
from tests.faults.stage import until
from tests.keyfile import keyfile
from tests.serving import Company, actorctl, serving
from tests.streams import Stream as Reader
from tests.streams import admin_http, ask, paused_amid

TOKENS = 400


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    keys = keyfile(tmp_path_factory.mktemp("keys"), "a")
    with serving("--executor", "hash", "--step-ms", "3", "--keys", str(keys)) as running:
        yield running


def _stream(company: Company, *arguments: Any, **fields: Any) -> Reader:
    """A client with a key."""
    return Reader(company, *arguments, key="a", **fields)


@pytest.fixture(scope="module")
def truth(company: Company) -> str:
    """What a stream says when nobody disturbs it."""
    text, finish = _stream(company, tokens=TOKENS).done()
    assert finish == "length"
    return text


def _waiting(company: Company, count: int) -> None:
    until(lambda: company.actor("scheduler.0")["waiting"] == count, f"{count} wait", 60)


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_a_paused_stream_stands_and_goes_on_exactly(company: Company, truth: str, mode: str) -> None:
    stream = paused_amid(company, mode, TOKENS, key="a")
    scheduler = company.actor("scheduler.0")
    assert (scheduler["running"], scheduler["waiting"]) == ((1, 0) if mode == "in_place" else (0, 1))
    steps = company.actor("executor.0")["steps_total"]
    late = _stream(company, "late", 5)
    _waiting(company, 1 + (mode == "retract"))
    assert company.actor("executor.0")["steps_total"] == steps
    assert company.status()["standing"]["paused"] == mode
    assert ask(company, "engine.resume") == {"mode": mode}
    assert stream.done() == (truth, "length")
    assert late.done()[1] == "length"
    assert company.status()["standing"]["paused"] is None


def test_mode_abort_ends_every_stream_with_what_it_has(company: Company, truth: str) -> None:
    stream = _stream(company, tokens=1900).begun()
    status, reply = admin_http(company, "/pause_generation", {"mode": "abort"})
    assert (status, reply["success"], reply["mode"]) == (200, True, "abort")
    text, finish = stream.done()
    assert text and finish in ("abort", "length")
    assert admin_http(company, "/continue_generation", {})[0] == 200
    assert _stream(company, tokens=TOKENS).done() == (truth, "length")


def test_mode_wait_lets_streams_end_and_holds_new_ones(company: Company, truth: str) -> None:
    stream = paused_amid(company, "wait", TOKENS, key="a")
    late = _stream(company, "late", 5)
    assert stream.done() == (truth, "length")
    _waiting(company, 1)
    ask(company, "engine.resume")
    assert late.done()[1] == "length"


def test_the_wrong_moment_is_refused(company: Company) -> None:
    resume = actorctl("engine", "resume", "--name", company.name)
    assert (resume.returncode, resume.stdout) == (5, "")
    assert resume.stderr == "actorctl: generation is not paused.\n"
    status, document = admin_http(company, "/continue_generation", {})
    assert status == 409 and document["error"]["message"] == "generation is not paused."
    ask(company, "engine.pause", mode="in_place")
    assert actorctl("engine", "pause", "--mode", "abort", "--name", company.name).returncode == 2
    pause = actorctl("engine", "pause", "--mode", "abort", "-y", "--name", company.name)
    assert pause.returncode == 5 and "paused already (in_place)" in pause.stderr
    assert admin_http(company, "/pause_generation", {"mode": "retract"})[0] == 409
    ask(company, "engine.resume")


def test_flushed_prefixes_are_computed_again(company: Company) -> None:
    _stream(company, "a prompt of some length, so that there are pages " * 4).done()
    until(lambda: company.actor("scheduler.0")["pages_owned"] == 0, "all pages are back", 60)
    cached = company.actor("scheduler.0")["pages_cached"]
    assert cached
    assert ask(company, "engine.flush-cache") == {"pages": cached, "kept": 0}
    assert company.actor("scheduler.0")["pages_cached"] == 0
    for body in (None, {}):
        assert admin_http(company, "/flush_cache", body) == (200, {"success": True, "pages": 0, "kept": 0})


@pytest.mark.parametrize("verb", ["pause", "drain", "slow-down", "set"])
def test_a_wrong_timeout_changes_nothing(company: Company, verb: str) -> None:
    before = company.status()["standing"]
    with pytest.raises(VerbError, match="timeout must be a number"):
        ask(company, f"engine.{verb}", timeout="soon", settings={"step_delay": 1})
    assert company.status()["standing"] == before


@pytest.mark.parametrize(
    ("path", "body", "key", "status"),
    [
        ("/pause_generation", {"mode": "gently"}, "boss", 400),
        ("/pause_generation", {"mode": [[["deep"]]]}, "boss", 400),
        ("/pause_generation", [1], "boss", 400),
        ("/pause_generation", {}, "a", 403),
        ("/pause_generation", {}, "nobody", 401),
        ("/pause_generation", None, "boss", 405),
    ],
)
def test_bad_requests_pause_nothing(company: Company, path: str, body: Any, key: str, status: int) -> None:
    assert admin_http(company, path, body, key)[0] == status
    assert company.status()["standing"]["paused"] is None


def test_how_it_looks(company: Company) -> None:
    table = actorctl("engine", "pause", "--name", company.name)
    assert [line.split() for line in table.stdout.splitlines()] == [
        ["FIELD", "VALUE"],
        ["mode", "in_place"],
        ["running", "0"],
        ["waiting", "0"],
    ]
    done = actorctl("engine", "resume", "--name", company.name, "-o", "json")
    assert json.loads(done.stdout) == {"mode": "in_place"}
    assert actorctl("engine", "flush-cache", "--name", company.name, "-o", "name").stdout == "flushed\n"
    assert actorctl("engine", "pause", "--mode", "x", "--name", company.name).returncode == 2
    assert actorctl("engine", "pause", "--name", "nobody-here").returncode == 69
