"""A real model gives its memory back to the system and takes it again; who dies meanwhile stays so."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import pytest

from protocols.errors import VerbError
from tests.faults.stage import until
from tests.serving import Company, actorctl, serving
from tests.streams import Stream, ask, paused_amid

PROMPT = "Tell me about a lighthouse and the sea. " * 12


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--dtype", "float32", "--kv-memory", "64MiB", "--max-running", "8") as running:
        yield running


@pytest.fixture(scope="module")
def truth(company: Company) -> str:
    """What the model says when nobody disturbs it."""
    return _say(company)


def _say(company: Company) -> str:
    text, finish = Stream(company, PROMPT, 24, temperature=0).done()
    assert finish == "length"
    return text


def _resident(company: Company) -> int:
    """Bytes of memory of its own that the executor has."""
    lines = pathlib.Path(f"/proc/{company.pids()['executor.0']}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _fill(company: Company) -> None:
    """Have every page written to."""
    for i in range(8):
        Stream(company, f"{i} {PROMPT * 3}", 2).done()


def test_released_pages_are_the_systems_again(company: Company, truth: str) -> None:
    _fill(company)
    assert company.actor("scheduler.0")["pages_cached"]
    before = _resident(company)
    released = ask(company, "memory.release", tags=["kv_cache"])
    assert released["released"] == ["kv_cache"] and released["bytes"]["kv_cache"] > 2**25
    assert company.actor("scheduler.0")["pages_cached"] == 0
    assert _resident(company) < before - 2**20
    stream = Stream(company, PROMPT, 24, temperature=0)
    until(lambda: company.actor("scheduler.0")["waiting"] == 1, "it waits", 60)
    ask(company, "memory.restore", tags=["kv_cache"])
    assert stream.done() == (truth, "length")


def test_weights_come_back_as_they_were(company: Company, truth: str) -> None:
    checksum = ask(company, "weights.info", verify=True)["checksum"]
    before = _resident(company)
    released = ask(company, "memory.release", tags=["weights"])
    assert _resident(company) < before - released["bytes"]["weights"] // 2
    with pytest.raises(VerbError, match="weights are released") as refusal:
        ask(company, "weights.info", verify=True)
    assert refusal.value.code == "conflict"
    ask(company, "memory.restore")
    assert ask(company, "weights.info", verify=True)["checksum"] == checksum
    assert _say(company) == truth


def test_it_sleeps_through_deaths_and_wakes(company: Company, truth: str) -> None:
    stream = Stream(company, PROMPT, 24, temperature=0).begun()
    done = actorctl("engine", "sleep", "--name", company.name)
    assert done.returncode == 0 and "weights, kv_cache, cuda_graph" in done.stdout, done.stderr
    assert stream.done() == (truth, "length")
    late = Stream(company, PROMPT, 24, temperature=0)
    for name in ("executor.0", "scheduler.0"):
        before = company.actor(name)["incarnation"]
        company.kill(name)
        until(lambda n=name, b=before: company.actor(n)["incarnation"] > b, "another", 90)  # type: ignore[misc]
        until(lambda: company.status()["state"] == "ready", "all are back", 90)
    with pytest.raises(VerbError, match="weights are released"):
        ask(company, "weights.info", verify=True)
    assert company.actor("executor.0")["steps_total"] == 0
    assert "released: weights, kv_cache, cuda_graph" in actorctl("status", "--name", company.name).stdout
    woken = json.loads(actorctl("engine", "wake", "--name", company.name, "-o", "json").stdout)
    assert woken["released"] == [] and woken["bytes"]["weights"] > 0
    assert late.done() == (truth, "length")


def test_the_wrong_moment_is_refused(company: Company) -> None:
    def refused(verb: str, **fields: object) -> str:
        with pytest.raises(VerbError) as refusal:
            ask(company, verb, **fields)
        assert refusal.value.code == "conflict"
        return str(refusal.value)

    assert "not released: nothing is" in refused("memory.restore")
    assert "not released: kv_cache" in refused("memory.restore", tags=["kv_cache"])
    stream = paused_amid(company, "in_place", 200)
    assert "memory is held by 1 request: pause" in refused("memory.release", tags=["kv_cache"])
    assert company.status()["standing"]["released"] == []
    ask(company, "memory.release", tags=["weights"])
    assert "released already" in refused("memory.release", tags=["weights"])
    assert "memory is released (weights)" in refused("engine.resume")
    assert "released already" in refused("engine.sleep")
    ask(company, "memory.restore", tags=["weights"])
    ask(company, "engine.resume")
    assert stream.done()[1] == "length"
    with pytest.raises(VerbError, match="tags must be some of"):
        ask(company, "memory.release", tags=["everything"])
