"""The measurement of a GPU in its smallest form, on the CPU: all of it runs, and its tokens are right."""

from __future__ import annotations

import json
import pathlib

import pytest
from click.testing import CliRunner

from tools.bench.gpu import exactness, machine, measure
from tools.bench.gpu.command import gpu
from tools.bench.gpu.shapes import SHAPES, kv_bytes, prefill_operations, spec_of, weight_bytes, write

pytestmark = pytest.mark.timeout(300)


def test_it_checks_measures_and_writes_json(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    path = tmp_path / "figures.json"
    result = CliRunner().invoke(gpu, ["--device", "cpu", "--smallest", "--no-peers", "--json", str(path)])
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert report["machine"]["packages"]["torch"] and report["machine"]["bandwidth"] > 0
    assert {each["model"] for each in report["exactness"]} == {"qwen3", "qwen3-moe"}
    assert all(each["right"] and not each["refused"] for each in report["exactness"])
    found = report["smallest"]
    assert set(found["decode"]) == {"1", "3"} and set(found["prefill"]) == {"16", "40"}
    for figures in (*found["decode"].values(), *found["prefill"].values()):
        assert figures["roofline"] > 0 and figures["tokens_per_second"] > 0
    assert found["workload"]["tokens_per_second"] > 0
    assert set(found["ablations"]) == set(measure.ABLATIONS)
    assert found["ablations"]["depth 1"]["attention"] == "torch"
    assert "needs a CUDA device" in found["ablations"]["flash"]["refused"]


def test_a_peer_that_fails_is_a_sentence(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no pages\nmore")

    monkeypatch.setattr(measure, "_batching", fail)
    write(tmp_path, "smallest")
    found = measure.transformers_beside(tmp_path, measure.SMALLEST, machine.torch.device("cpu"))
    assert found["generate, static cache"]["milliseconds"] > 0
    assert found["continuous batching"] == {"failed": "no pages"}


def test_a_wrong_token_ends_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = exactness.Verdict("qwen3", "float32", "auto", "off", worst=0.5, same=0.9)
    monkeypatch.setattr(exactness, "reference", lambda *_: None)
    monkeypatch.setattr(exactness, "check", lambda *_, **__: verdict)
    path = tmp_path / "figures.json"
    result = CliRunner().invoke(gpu, ["--device", "cpu", "--smallest", "--json", str(path)])
    assert result.exit_code == 1 and "WRONG" in result.output
    assert set(json.loads(path.read_text())) == {"machine", "exactness"}


def test_a_cpu_is_measured_in_the_smallest_form_only() -> None:
    result = CliRunner().invoke(gpu, ["--device", "cpu"])
    assert result.exit_code == 2 and "--smallest" in result.output


def test_the_roofline_counts_what_a_step_must_move() -> None:
    """Qwen3-8B: 8.19 billion parameters, of which the embedding's 0.62 are not read; 147 kB of KV a token."""
    spec = spec_of("8b")
    assert weight_bytes(spec, 2) == pytest.approx(2 * (8.19e9 - 0.62e9), rel=0.01)
    assert kv_bytes(spec, 2) == 36 * 2 * 8 * 128 * 2
    assert prefill_operations(spec, 1024) == pytest.approx(2 * 1024 * 6.95e9, rel=0.03)
    assert set(SHAPES) == {"smallest", "0.6b", "8b", "14b"}
    assert machine.seconds(lambda: None, machine.torch.device("cpu"), 1) < 1
