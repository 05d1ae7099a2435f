"""The measurement of a GPU in its smallest form, on the CPU: all of it runs, and its tokens are right."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pathlib
from typing import Any

import pytest
from click.testing import CliRunner

from tools.bench.gpu import exactness, machine, measure, sections
from tools.bench.gpu.command import gpu
from tools.bench.gpu.shapes import SHAPES, kv_bytes, prefill_operations, spec_of, weight_bytes, write

if importlib.util.find_spec("triton") is not None:
    importlib.import_module(
        "triton.language"
    )  # while its interpreter is turned on, which a test here turns off

pytestmark = pytest.mark.timeout(300)


def rehearse(path: pathlib.Path, *sections: str) -> dict[str, Any]:
    """The report of these sections, all of which went well."""
    options = [word for section in sections for word in ("--section", section)]
    result = CliRunner().invoke(
        gpu, ["--device", "cpu", "--rehearse", "--no-peers", "--json", str(path), *options]
    )
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def test_it_checks_measures_and_writes_json(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    report = rehearse(
        tmp_path / "figures.json", "machine", "exact", "kernels", "speed", "steps", "ablations", "workload"
    )
    assert report["machine"]["packages"]["torch"] and report["machine"]["bandwidth"] > 0
    verdicts = [each for each in report["exact"].values() if isinstance(each, dict)]
    assert {each["model"] for each in verdicts} == {"qwen3", "qwen3-moe"}
    assert {each["bits"] for each in verdicts} == {"", "int8", "fp8", "fp8 KV"}
    assert all(each["right"] and not each["refused"] for each in verdicts)
    found = report["speed smallest"]
    assert set(found["decode"]) == {"1", "3"} and set(found["prefill"]) == {"16", "40"}
    for figures in (*found["decode"].values(), *found["prefill"].values()):
        assert figures["roofline"] > 0 and figures["tokens_per_second"] > 0
    assert {"scheduler turn", "ring hop", "plan decode", "launch", "device", "step"} <= set(
        report["steps smallest"]
    )
    assert json.loads((tmp_path / "decode-smallest.json").read_text())["traceEvents"]
    assert report["workload smallest"]["ours"]["tokens_per_second"] > 0
    ablations = report["ablations smallest"]
    assert set(ablations) == {*measure.ABLATIONS, *sections.EIGHT_BITS, "took_seconds"}
    assert ablations["depth 1"]["attention"] == "torch" and ablations["fp8, KV too"]["1"]["milliseconds"] > 0
    assert "needs a CUDA device" in ablations["flash"]["refused"]


def test_kernels_are_compared_with_what_they_stand_for(tmp_path: pathlib.Path) -> None:
    pytest.importorskip(
        "triton", minversion="3.7", reason="Triton is not installed: its kernels are not tested."
    )
    found = rehearse(tmp_path / "figures.json", "kernels")["kernels smallest"]
    assert {"experts 3", "adapters 3", "attention", "qkv 3", "sampling 3, top-p 0.9"} <= set(found)


def test_a_company_is_measured_and_killed(tmp_path: pathlib.Path) -> None:
    report = rehearse(tmp_path / "figures.json", "served", "killed")
    assert report["served smallest"]["served / bare"] > 0
    assert report["killed smallest"]["streams"] == 8 and report["killed smallest"]["p50"] > 0


def test_a_section_that_fails_is_told_and_the_next_begins(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(sections.SECTIONS, "exact", (fail, ("",)))
    path = tmp_path / "figures.json"
    options = [
        "--device",
        "cpu",
        "--rehearse",
        "--json",
        str(path),
        "--section",
        "exact",
        "--section",
        "machine",
    ]
    result = CliRunner().invoke(gpu, options)
    report = json.loads(path.read_text())
    assert result.exit_code == 1 and report["exact"]["failed"] == "RuntimeError: no such kernel"
    assert (
        "fail" in report["exact"]["where"][-2] + report["exact"]["where"][-3] and report["machine"]["rates"]
    )
    result = CliRunner().invoke(gpu, [*options, "--minutes", "-1"])
    assert json.loads(path.read_text())["machine"] == {"skipped": "-1 minutes were over"}


def test_a_peer_that_fails_is_a_sentence(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no pages\nmore")

    monkeypatch.setattr(measure, "_batching", fail)
    write(tmp_path, "smallest")
    found = measure.transformers_beside(tmp_path, measure.SMALLEST, machine.torch.device("cpu"))
    assert found["generate, static cache"]["milliseconds"] > 0
    assert found["continuous batching"] == {"failed": "no pages"}


def test_a_wrong_token_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = exactness.Verdict("qwen3", "float32", "auto", "off", worst=0.5, same=0.9)
    monkeypatch.setattr(exactness, "verdicts", lambda *_, **__: [verdict])
    path = tmp_path / "figures.json"
    options = ["--device", "cpu", "--rehearse", "--json", str(path), "--section", "exact"]
    result = CliRunner().invoke(gpu, options)
    assert result.exit_code == 1 and "WRONG" in result.output
    assert json.loads(path.read_text())["exact"][verdict.title]["right"] is False


def test_a_cpu_is_for_rehearsals_only() -> None:
    result = CliRunner().invoke(gpu, ["--device", "cpu"])
    assert result.exit_code == 2 and "--rehearse" in result.output


def test_the_roofline_counts_what_a_step_must_move() -> None:
    """Qwen3-8B: 8.19 billion parameters, of which the embedding's 0.62 are not read; 147 kB of KV a token."""
    spec = spec_of("8b")
    assert weight_bytes(spec, 2) == pytest.approx(2 * (8.19e9 - 0.62e9), rel=0.01)
    assert kv_bytes(spec, 2) == 36 * 2 * 8 * 128 * 2
    assert prefill_operations(spec, 1024) == pytest.approx(2 * 1024 * 6.95e9, rel=0.03)
    assert set(SHAPES) == {"smallest", "0.6b", "8b", "14b"}
    assert machine.seconds(lambda: None, machine.torch.device("cpu"), 1) < 1
