"""The examples as they lie there, each run as its first lines say."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.contract.clients.environments import run_node
from tests.serving import ROOT, Company, serving

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--dtype", "float32", "--api-key", "s3cret") as running:
        yield running


@pytest.fixture(autouse=True)
def server(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_URL", company.url)
    monkeypatch.setenv("TROUPE_API_KEY", "s3cret")


def output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    files = {path.name for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sh", ".mjs")}
    assert files == {"http_stream.py", "websocket_lanes.py", "curl.sh", "chat.mjs", "push_weights.py"}


def test_http_stream() -> None:
    assert output(sys.executable, "examples/http_stream.py", "What is 20 + 3?") == "20 + 3 = 23.\n"


def test_websocket_lanes() -> None:
    lines = output(sys.executable, "examples/websocket_lanes.py").splitlines()
    assert {"sums: 12 + 30 = 42.", "sums: 20 + 3 = 23."} <= set(lines)
    assert lines.index("sums: 12 + 30 = 42.") < lines.index("sums: 20 + 3 = 23.")
    assert [line.partition(":")[0] for line in sorted(lines)] == ["sums"] * 2 + ["tales"] + ["towns"] * 2


def test_curl() -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    whole, streamed, again = output("sh", "examples/curl.sh", "What is 20 + 3?").split("--- ")[1:]
    assert '"content":"20 + 3 = 23."' in whole
    events = [line for line in streamed.splitlines() if line.startswith("event: ")]
    assert events[0] == "event: response.created" and events[-1] == "event: response.completed"
    assert [line for line in again.splitlines() if line.startswith("event: ")] == events[6:]


@pytest.mark.timeout(300)  # on a cold machine the packages are fetched first
def test_javascript(tmp_path: pathlib.Path) -> None:
    done = run_node(EXAMPLES / "javascript" / "chat.mjs", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["12 + 30 = 42.", "20 + 3 = 23."]
    assert "of the prompt cached]" in done.stdout
