"""`actorctl doctor` and `actorctl completion`: what needs no company."""

from __future__ import annotations

import json
import pathlib
import resource
import shutil

import pytest

from protocols.compiling import Unavailable
from tests.serving import actorctl
from tools.actorctl import doctor


def test_this_machine_is_fit() -> None:
    done = actorctl("doctor", "-o", "json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0, done.stdout
    assert {"python", "shared memory", "leftovers", "open files", "processor", "gpu", "torch"} <= set(
        findings
    )
    assert {finding["state"] for finding in findings.values()} <= {"ok", "warning"}


def _no_compiler() -> str:
    raise Unavailable("there is none")


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("runtime.native.find_compiler", _no_compiler)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2**20))
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (64, 64))
    monkeypatch.setattr(pathlib.Path, "glob", lambda _self, _pattern: [pathlib.Path("/dev/shm/troupe-x")])
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["shared memory"].state == "wrong" and found["shared memory"].detail.startswith("1 MiB free")
    assert found["open files"].state == "warning"
    assert "troupe-x" in found["leftovers"].detail
    assert found["rings"].state == "warning" and found["rings"].detail.endswith("slower: there is none")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = actorctl("completion", shell)
    assert done.returncode == 0 and "_ACTORCTL_COMPLETE" in done.stdout


def test_a_strange_shell() -> None:
    assert actorctl("completion", "tcsh").returncode == 2
