"""Profiles: what the files hold, when they are there, and what becomes of them when an executor is killed."""

from __future__ import annotations

import json
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

import pytest

from protocols.errors import VerbError
from tests.faults.stage import until
from tests.serving import Company, actorctl, serving
from tests.streams import Stream, ask


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--executor", "hash", "--dp", "2") as running:
        yield running


def _steps(path: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(pathlib.Path(path).read_text())["traceEvents"]
    return events


def test_all_record_until_they_are_stopped(company: Company, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "new"
    begun = ask(company, "profile.start", folder=str(folder))["files"]
    assert list(begun) == ["executor.0", "executor.1"]
    (made,) = folder.iterdir()
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, made)] == [0o700, 0o700]
    Stream(company, tokens=20).done()
    assert not any(made.iterdir())
    told = ask(company, "profile.stop")
    assert (told["files"], told["lost"]) == (begun, {})
    for name, path in begun.items():
        assert len(_steps(path)) == told["steps"][name]
        assert pathlib.Path(path).stat().st_size == told["bytes"][name]
    assert sum(told["steps"].values()) > 0
    assert {each.name for each in made.iterdir()} == {pathlib.Path(each).name for each in begun.values()}
    with pytest.raises(VerbError, match="nothing is being profiled"):
        ask(company, "profile.stop")


def test_after_so_many_steps_the_file_is_there_by_itself(company: Company, tmp_path: pathlib.Path) -> None:
    """And another profile of that executor may begin, before anybody has asked for the first."""
    begun = ask(company, "profile.start", folder=str(tmp_path), steps=1)["files"]
    Stream(company, tokens=20).done()
    name = until(
        lambda: next((n for n, path in begun.items() if pathlib.Path(path).exists()), ""), "a file", 60
    )
    assert len(_steps(begun[name])) == 1
    again = ask(company, "profile.start", folder=str(tmp_path), actors=[name])["files"]
    told = ask(company, "profile.stop")
    assert told["files"] == begun | again and told["lost"] == {}


def test_one_alone_and_not_those_that_are_recorded(company: Company, tmp_path: pathlib.Path) -> None:
    where = {"folder": str(tmp_path)}
    assert list(ask(company, "profile.start", actors=["executor.1"], **where)["files"]) == ["executor.1"]
    with pytest.raises(VerbError, match=r"executor\.1 is being profiled already"):
        ask(company, "profile.start", **where)
    (left,) = tmp_path.iterdir()
    assert list(ask(company, "profile.start", actors=["executor.0"], **where)["files"]) == ["executor.0"]
    told = ask(company, "profile.stop")
    assert set(told["files"]) == {"executor.0", "executor.1"}, "the one that was refused disturbed nobody"
    assert told["files"]["executor.1"].startswith(str(left))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"actors": ["scheduler.0"]}, r"executor\.0, executor\.1"),
        ({"activities": ["MEM"]}, "activities must be some of CPU, GPU"),
        ({"folder": "here"}, "absolute path"),
        ({"folder": "/dev/null/here"}, "cannot make a directory"),
        ({"steps": 0}, "steps must be a number from 1"),
    ],
)
def test_wrong_wishes(company: Company, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(VerbError, match=words):
        ask(company, "profile.start", **fields)
    assert company.status()["standing"]["profiles"] == {}


def test_whoever_is_killed_has_no_file_and_the_streams_go_on(
    company: Company, tmp_path: pathlib.Path
) -> None:
    text = Stream(company, tokens=200).done()[0]
    ask(company, "profile.start", folder=str(tmp_path))
    streams = [Stream(company, tokens=200).begun() for _ in range(4)]
    company.kill("executor.1")
    assert [stream.done()[0] for stream in streams] == [text] * 4
    until(lambda: company.status()["state"] == "ready", "everybody is back", 60)
    done = actorctl("profile", "stop", "--name", company.name, "-o", "json")
    told = json.loads(done.stdout)
    assert (done.returncode, list(told["files"]), list(told["lost"])) == (0, ["executor.0"], ["executor.1"])
    assert done.stderr == "lost: executor.1 has been replaced, and its profile is lost.\n"
    assert ask(company, "profile.start", folder=str(tmp_path))["files"].keys() == {"executor.0", "executor.1"}
    assert ask(company, "profile.stop")["lost"] == {}
