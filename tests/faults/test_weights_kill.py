"""SIGKILL at every point of a change of weights: one version everywhere, and a truthful answer."""

from __future__ import annotations

import pathlib

import pytest

from protocols.errors import VerbError
from runtime.failpoints import VARIABLE
from tests.faults.stage import until
from tests.serving import Company, serving
from tests.streams import Generation, ask

PROMPT = list(range(2, 40))
TOKENS = 400
OPTIONS = ("--executor", "hash", "--step-ms", "3", "--dp", "2")

Truths = dict[str, list[int]]
"""What each version answers when nobody disturbs it."""

EXECUTORS = (
    "executor.0/weights.stage=kill@3#1",
    "executor.1/weights.staged=kill@4#1",
    "executor.0/weights.commit=kill@2#2",
    "executor.1/weights.committed=kill@2#2",
)
"""By passage: the first two changes of each test are left alone."""

SCHEDULERS = (
    "scheduler.0/order.before=kill@7#1",  # to pause
    "scheduler.0/order.after=kill@4#2",
    "scheduler.0/order.before=kill@2#3",  # to renew
    "scheduler.0/order.after=kill@4#4",
    "scheduler.0/order.before=kill@2#5",  # to go on
    "scheduler.0/order.after=kill@4#6",
    "tokenizer.0/order.before=kill@4#1",
)
"""Each change is three orders for a scheduler, and who died of one is given it again."""


@pytest.fixture
def checkpoints(tmp_path: pathlib.Path) -> dict[str, str]:
    """What a hash executor takes for weights, by version."""
    paths = {version: tmp_path / f"{version}.safetensors" for version in ("b", "c")}
    for version, path in paths.items():
        path.write_text(f"weights of {version}")
    return {version: str(path) for version, path in paths.items()}


def _update(company: Company, checkpoints: dict[str, str], version: str) -> None:
    done = ask(company, "weights.update", source=checkpoints[version], version=version)
    assert done["version"] == version


def _learn(company: Company, checkpoints: dict[str, str]) -> Truths:
    """The truths, from two changes that nobody disturbs."""
    truths = {"default": Generation(company, PROMPT, TOKENS).done().ids}
    for version in checkpoints:
        _update(company, checkpoints, version)
        answer = Generation(company, PROMPT, TOKENS).done()
        assert answer.versions == [version]
        truths[version] = answer.ids
    assert len(set(map(tuple, truths.values()))) == 3
    return truths


def _is_spliced(stream: Generation, truths: Truths) -> bool:
    """Whether its tokens are those of the versions that it tells, one after the other, none missing, none
    twice."""
    versions = iter(stream.versions)
    version = next(versions)
    for place, token in enumerate(stream.ids):
        while token != truths[version][place]:
            if not (version := next(versions, "")):
                return False
    return len(stream.ids) == TOKENS and stream.finish == "length"


def _settled(company: Company) -> str:
    """The version that serves, everywhere, as read in the executors' memory."""
    until(lambda: company.status()["state"] == "ready", "everybody is back", 90)
    info = ask(company, "weights.info", verify=True)
    assert info["verified"] == ["executor.0", "executor.1"]
    assert company.status()["standing"]["paused"] is None
    version: str = info["version"]
    return version


def _crowd(company: Company) -> list[Generation]:
    streams = [Generation(company, PROMPT, TOKENS) for _ in range(4)]
    return [stream.begun() for stream in streams]


def _check(company: Company, streams: list[Generation], truths: Truths, version: str) -> None:
    """That version serves, and each stream was made by what served."""
    assert _settled(company) == version
    for stream in streams:
        assert _is_spliced(stream.done(), truths), (stream.versions, stream.ids)
    fresh = Generation(company, PROMPT, TOKENS).done()
    assert (fresh.ids, fresh.versions) == (truths[version], [version])


def test_executors(monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, str]) -> None:
    monkeypatch.setenv(VARIABLE, ";".join(EXECUTORS))
    with serving(*OPTIONS) as company:
        truths = _learn(company, checkpoints)
        for _ in range(2):
            streams = _crowd(company)
            with pytest.raises(VerbError, match="died"):
                _update(company, checkpoints, "b")
            _check(company, streams, truths, "c")
            assert all(stream.versions == ["c"] for stream in streams), "nothing has changed"
        for version in ("b", "c"):
            streams = _crowd(company)
            _update(company, checkpoints, version)
            _check(company, streams, truths, version)
        assert [company.actor(f"executor.{i}")["incarnation"] for i in (0, 1)] == [3, 3]


def test_schedulers_and_a_tokenizer(monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, str]) -> None:
    monkeypatch.setenv(VARIABLE, ";".join(SCHEDULERS))
    with serving(*OPTIONS) as company:
        truths = _learn(company, checkpoints)
        for version in ("b", "c", "b", "c"):
            streams = _crowd(company)
            _update(company, checkpoints, version)
            _check(company, streams, truths, version)
        assert company.actor("scheduler.0")["incarnation"] == 7
        assert company.actor("tokenizer.0")["incarnation"] == 2
