"""Loading, unloading and listing adapters in a running company of two replicas."""

from __future__ import annotations

import json
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from protocols.adapters import CONFIG, WEIGHTS
from protocols.errors import VerbError
from tests.keyfile import keyfile
from tests.serving import Company, actorctl, serving
from tests.streams import Stream, admin_http, ask
from tools.actorctl.target import CONFLICT, NOT_FOUND, OK, USAGE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where adapters are written."""
    return tmp_path_factory.mktemp("adapters")


def write(folder: pathlib.Path, name: str) -> str:
    """What the hash executor takes for an adapter; its path."""
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / CONFIG).write_text(f'{{"of": "{name}"}}')
    (path / WEIGHTS).write_bytes(name.encode())
    return str(path)


@pytest.fixture(scope="module")
def company(folder: pathlib.Path) -> Iterator[Company]:
    lora = ("--lora", f"first={write(folder, 'first')}", "--max-loras", "3")
    with serving("--executor", "hash", "--dp", "2", *lora) as running:
        yield running


def names(company: Company) -> list[str]:
    """Of the adapters that are listed."""
    return [each["name"] for each in ask(company, "lora.list")["adapters"]]


def test_lists_loads_and_unloads_by_command(company: Company, folder: pathlib.Path) -> None:
    def lora(*arguments: str, code: int = OK) -> str:
        done = actorctl("lora", *arguments, "--name", company.name)
        assert done.returncode == code, done.stderr
        return done.stdout if code == OK else done.stderr

    path = write(folder, "second")
    assert json.loads(lora("load", "second", path, "--pinned", "-o", "json"))["pinned"] is True
    header, *rows = lora("list").splitlines()
    assert header.split() == ["NAME", "ID", "PINNED", "REQUESTS"]
    assert [row.split()[0] for row in rows] == ["first", "second"]
    assert rows[1].split()[2:] == ["yes", "0"]
    listed = json.loads(lora("list", "-o", "json"))
    assert listed["slots"] == 3 and listed["adapters"][1]["path"] == path
    assert "already" in lora("load", "second", path, code=CONFLICT)
    assert "--max-loras" not in lora("load", "second", path, "--replace")
    assert "is no directory" not in lora("load", "x", str(folder / "nothing"), code=USAGE)
    assert "letters, digits" in lora("load", "a b", path, code=USAGE)
    assert lora("unload", "second", "-o", "name") == "second\n"
    assert "there is no adapter 'second'" in lora("unload", "second", code=NOT_FOUND)
    assert lora("list", "-o", "name") == "first\n"


def test_not_so_many_may_be_pinned_that_nobody_else_runs(company: Company, folder: pathlib.Path) -> None:
    for name in ("p1", "p2"):
        ask(company, "lora.load", name=name, path=write(folder, name), pinned=True)
    with pytest.raises(VerbError, match="leave none to other adapters") as refusal:
        ask(company, "lora.load", name="p3", path=write(folder, "p3"), pinned=True)
    assert refusal.value.code == "conflict"
    for name in ("p1", "p2"):
        ask(company, "lora.unload", name=name)


@pytest.mark.parametrize("path", ["relative", "/nowhere", "/a\0b", "fifo"])
def test_paths_that_are_no_adapters(company: Company, folder: pathlib.Path, path: str) -> None:
    if path == "fifo":
        (folder / "pipe").mkdir()
        os.mkfifo(folder / "pipe" / CONFIG)
        path = str(folder / "pipe")
    with pytest.raises(VerbError, match=r"not an absolute path|cannot read|not a regular file") as refusal:
        ask(company, "lora.load", name="bad", path=path)
    assert refusal.value.code == "usage" and "bad" not in names(company)


def test_loading_and_unloading_under_load(company: Company, folder: pathlib.Path) -> None:
    """Thirty changes while streams run through what is changed: each ends, and nothing is left."""
    over = threading.Event()
    ended: list[tuple[str, str]] = []

    def stream(model: str) -> None:
        while not over.is_set():
            ended.append(Stream(company, "again and again", 40, model=model).done())

    threads = [threading.Thread(target=stream, args=(model,)) for model in (company.model, "first") * 2]
    for thread in threads:
        thread.start()
    before = company.pids()
    path = write(folder, "changing")
    for turn in range(30):
        ask(company, "lora.load", name=f"changing-{turn % 3}", path=path)
        text = Stream(company, "once", 3, model=f"changing-{turn % 3}").done()
        assert text[1] == "length"
        ask(company, "lora.unload", name=f"changing-{turn % 3}", drain=True)
    over.set()
    for thread in threads:
        thread.join()
    assert len(set(ended)) == 2 and {finish for _, finish in ended} == {"length"}
    assert company.pids() == before and names(company) == ["first"]


@pytest.mark.parametrize("actor", ["executor.0", "executor.1", "scheduler.0", "frontend.0"])
def test_a_successor_knows_what_was_loaded(company: Company, folder: pathlib.Path, actor: str) -> None:
    ask(company, "lora.load", name="kept", path=write(folder, "kept"))
    wanted = Stream(company, "the same", 30, model="kept").done()
    assert wanted != Stream(company, "the same", 30, model="first").done()
    company.kill(actor)
    for _ in range(4):
        assert Stream(company, "the same", 30, model="kept").done() == wanted
    ask(company, "lora.unload", name="kept")


def test_the_http_names(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "a")

    def post(name: str, key: str = "boss", **body: Any) -> tuple[int, dict[str, Any]]:
        return admin_http(company, name, body, key)

    with serving("--executor", "hash", "--keys", str(keyfile(tmp_path, "user"))) as company:
        load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
        status, document = post(load, lora_name="a", lora_path=path)
        assert (status, document["success"], document["name"]) == (200, True, "a")
        assert post(load, lora_name="a", lora_path=path)[0] == 409
        assert post(load, lora_name="b", lora_path="a")[0] == 400
        assert post(load, lora_name="b", lora_path=path, pinned="yes")[0] == 400
        assert post(load, key="user", lora_name="b", lora_path=path)[0] == 403
        assert post(unload, lora_name="a")[0] == 200
        assert post(unload, lora_name="a")[0] == 404
