"""A model whose weights a trainer changes while it serves: exact before and after, and nobody waits for the
dead."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.keyfile import keyfile
from tests.serving import ROOT, Company, serving
from tests.streams import Generation, admin_http, ask
from tools.chaos.weights import perturbed

PROMPT = list(range(40, 72))
TOKENS = 150
MODEL = ROOT / "tools" / "demo" / "model"


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    keys = keyfile(tmp_path_factory.mktemp("keys"), "a")
    with serving("--keys", str(keys)) as running:
        yield running


def _answer(company: Company, prompt: list[int], tokens: int) -> Generation:
    return Generation(company, prompt, tokens, key="a")


def _trainer(company: Company, *command: str, key: str = "boss") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "TROUPE_ADMIN_KEY": key, "COMPANY": f"http://127.0.0.1:{company.port}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_kept_stream_goes_on_exactly_as_the_new_weights_would(company: Company) -> None:
    whole = _answer(company, PROMPT, TOKENS).done().ids
    stream = _answer(company, PROMPT, TOKENS).begun()
    with perturbed(1) as path:
        ask(company, "weights.update", source=str(path), version="noise")
    stream.done()
    assert len(stream.ids) == TOKENS
    same = next((i for i, token in enumerate(stream.ids) if token != whole[i]), TOKENS)
    if same < TOKENS:
        rest = _answer(company, [*PROMPT, *stream.ids[:same]], TOKENS - same).done()
        assert (rest.ids, rest.versions) == (stream.ids[same:], ["noise"])
    checksum = ask(company, "weights.info", verify=True)["checksum"]
    company.kill("executor.0")
    assert _answer(company, PROMPT, 5).done().versions == ["noise"]
    assert ask(company, "weights.info", verify=True)["checksum"] == checksum
    ask(company, "weights.rollback")
    assert _answer(company, PROMPT, TOKENS).done().ids == whole


def test_a_corrupt_checkpoint_is_refused_and_nothing_is_flushed(
    company: Company, tmp_path: pathlib.Path
) -> None:
    _answer(company, PROMPT, 40).done()
    before, cached = ask(company, "weights.info"), company.actor("scheduler.0")["pages_cached"]
    whole = (MODEL / "model.safetensors").read_bytes()
    for name, data in {"cut": whole[:-100], "none": b"", "other": whole[8:]}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        status, document = admin_http(company, "/update_weights_from_disk", {"model_path": str(path)})
        reason = "is empty" if name == "none" else "not a valid safetensors file"
        assert status == 400 and reason in document["error"]["message"]
    assert ask(company, "weights.info") == before
    assert company.actor("scheduler.0")["pages_cached"] == cached > 0


def test_a_trainer_pushes_its_weights(company: Company) -> None:
    before = ask(company, "weights.info")["version"]
    streams = [_answer(company, PROMPT, TOKENS).begun() for _ in range(4)]
    url = f"http://127.0.0.1:{company.port}"
    done = _trainer(company, "examples/push_weights.py", str(MODEL), "--updates", "3", "--url", url)
    assert done.returncode == 0, done.stderr
    pushed = [json.loads(line)["version"] for line in done.stdout.splitlines()]
    assert pushed == ["step-1", "step-2", "step-3"]
    order = [before, *pushed]
    for stream in streams:
        assert len(stream.done().ids) == TOKENS
        places = [order.index(version) for version in stream.versions]
        assert places == sorted(places) and places[0] == 0
    info = ask(company, "weights.info", verify=True)
    assert (info["version"], info["before"]) == ("step-3", "step-2")
    assert _answer(company, PROMPT, 5).done().versions == ["step-3"]


@pytest.mark.parametrize(
    ("key", "told"), [("", "TROUPE_ADMIN_KEY must hold"), ("strange", "administrator's key is needed")]
)
def test_a_trainer_without_the_right_key_is_told_at_once(company: Company, key: str, told: str) -> None:
    url = f"http://127.0.0.1:{company.port}"
    done = _trainer(company, "examples/push_weights.py", str(MODEL), "--url", url, key=key)
    assert done.returncode and told in done.stderr and "Traceback" not in done.stderr


def test_a_trainer_that_dies_is_not_waited_for(company: Company) -> None:
    before = ask(company, "weights.info")
    program = (
        "import concurrent.futures, os, sys; sys.path.insert(0, 'examples'); import push_weights;"
        "push_weights.make_group(os.environ['COMPANY'], 1, concurrent.futures.ThreadPoolExecutor())"
    )
    done = _trainer(company, "-c", program)
    assert done.returncode == 0, done.stderr
    body = {"group_name": "trainer", "names": ["model.norm.weight"], "dtypes": ["float32"], "shapes": [[256]]}
    status, document = admin_http(
        company, "/update_weights_from_distributed", {**body, "receive_timeout": 30}
    )
    assert status == 500 and "did not come" in document["error"]["message"]
    status, document = admin_http(company, "/update_weights_from_distributed", body)
    assert status == 404 and "in no group" in document["error"]["message"]
    assert ask(company, "weights.info") == before
    assert len(_answer(company, PROMPT, 5).done().ids) == 5
