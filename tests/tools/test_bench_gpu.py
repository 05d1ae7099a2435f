"""The measurement of a GPU in its smallest form, on the CPU: all of it runs, and its tokens are right."""

from __future__ import annotations

import dataclasses
import gzip
import importlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import pytest
from click.testing import CliRunner

from tools.bench.gpu import beside, cases, exactness, findings, machine, measure, sections
from tools.bench.gpu.case import Wish, run
from tools.bench.gpu.command import gpu
from tools.bench.gpu.shapes import SHAPES, kv_bytes, prefill_operations, spec_of, weight_bytes

if importlib.util.find_spec("triton") is not None:
    importlib.import_module(
        "triton.language"
    )  # while its interpreter is turned on, which a test here turns off

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Of models, and of what the machine can do."""
    return tmp_path_factory.mktemp("bench")


def wish(folder: pathlib.Path, section: str, of: str = "") -> Wish:
    """A rehearsal of a case on a CPU."""
    path = folder / f"{section}-{of}.findings"
    return Wish(section, of, "cpu", str(folder), str(path), str(folder), True)


def rehearse(folder: pathlib.Path, section: str, of: str = "smallest") -> dict[str, Any]:
    """What a case finds, all of which goes well."""
    wished = wish(folder, section, of)
    run(wished)
    found = findings.read(pathlib.Path(wished.findings))
    assert not findings.wrong(found), found
    return found


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would be slow."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("no_interpreter")
def test_it_measures(folder: pathlib.Path) -> None:
    facts = rehearse(folder, "machine", "")["facts"]
    assert facts["packages"]["torch"] and facts["bandwidth"] > 0
    found = rehearse(folder, "speed")
    assert set(found["decode"]) == {"1", "3"} and set(found["prefill"]) == {"16", "40"}
    for figures in (*found["decode"].values(), *found["prefill"].values()):
        assert figures["roofline"] > 0 and figures["tokens_per_second"] > 0
    found = rehearse(folder, "steps")
    assert {"launch", "device", "step", "bubble"} <= set(found["budget"]) and found["kernels"]
    assert {"scheduler turn", "ring hop", "plan decode"} <= set(found["elsewhere"])
    assert json.loads(gzip.decompress((folder / "decode-smallest.json.gz").read_bytes()))["traceEvents"]
    assert rehearse(folder, "workload")["ours"]["tokens_per_second"] > 0
    ablations = rehearse(folder, "ablations")
    assert set(ablations) == {*measure.ABLATIONS, *sections.EIGHT_BITS}
    assert ablations["depth 1"]["attention"] == "torch" and ablations["fp8, KV too"]["1"]["milliseconds"] > 0
    assert "needs a CUDA device" in ablations["flash"]["refused"]


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize("model", ["qwen3", "qwen3-moe"])
def test_tokens_are_those_of_transformers(folder: pathlib.Path, model: str) -> None:
    found = rehearse(folder, "exact", model)
    bits = ("int8", "fp8", "fp8 KV")
    titles = {"float32 auto graphs auto", *(f"bfloat16 auto graphs auto {each}" for each in bits)}
    assert set(found) == titles
    assert all(each["right"] and "refused" not in each for each in found.values())


def test_kernels_are_compared_with_what_they_stand_for(folder: pathlib.Path) -> None:
    pytest.importorskip(
        "triton", minversion="3.7", reason="Triton is not installed: its kernels are not tested."
    )
    found = rehearse(folder, "kernels")
    assert {name: set(part) for name, part in found.items()} == {
        "attention": {"attention"},
        "decodes": {f"2 of 40, parts of {least}" for least in (128, 256, 512)},
        "sampling": {"sampling 3, top-p 0.9", "sampling 3, top-k 50, top-p 0.9"},
        "products": {"qkv 3", "output 3", "gate and up 3", "down 3"},
        "experts": {"experts 3", "experts 3, int8", "experts 3, fp8"},
        "adapters": {"adapters 3"},
    }


def test_a_company_is_measured_and_killed(folder: pathlib.Path) -> None:
    assert rehearse(folder, "served")["served / bare"] > 0
    found = rehearse(folder, "killed")["executor"]
    assert found["streams"] == 8 and found["p50"] > 0


def test_a_peer_that_fails_is_a_sentence(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, float]:
        raise RuntimeError("no pages")

    monkeypatch.setitem(beside.WAYS, "continuous batching", fail)
    run(wish(folder, "peers", "smallest"))
    found = findings.read(folder / "peers-smallest.findings")
    assert found["generate, static cache"]["milliseconds"] > 0
    assert found["continuous batching"]["failed"] == "RuntimeError: no pages"


def command(path: pathlib.Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it."""
    words = [sys.executable, "-m", "tools.bench.gpu", "--device", "cpu", "--rehearse", "--json", str(path)]
    return subprocess.run([*words, *options], capture_output=True, text=True, check=False)


def test_what_is_found_already_is_not_done_again(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "figures.json"
    done = command(path, "--section", "machine")
    assert done.returncode == 0 and "machine: right" in done.stdout, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["machine"]["facts"]["rates"] and report["machine"]["took_seconds"] > 0
    options = ["--device", "cpu", "--rehearse", "--json", str(path), "--section", "machine"]
    result = CliRunner().invoke(gpu, options)
    assert result.exit_code == 0 and result.output == "" and json.loads(path.read_text()) == report
    result = CliRunner().invoke(gpu, [*options, "--section", "speed", "--minutes", "0.1"])
    assert json.loads(path.read_text())["speed smallest"] == {"skipped": "no time was left"}


DYING = """
import os, pathlib, sys, time
from tools.bench.gpu.case import Wish
from tools.bench.gpu.findings import Findings
import msgspec
wish = msgspec.json.decode(sys.argv[-1].encode(), type=Wish)
if wish.of == "hangs":
    time.sleep(999)
found = Findings(pathlib.Path(wish.findings), print, lambda: False)
found.piece(lambda: 1, "first")
found.piece(lambda: os.kill(os.getpid(), 9), "second")
found.piece(lambda: 1 / 0, "third")
found.piece(lambda: 4, "fourth")
"""


def test_a_case_goes_on_behind_the_piece_that_killed_it(tmp_path: pathlib.Path) -> None:
    """And is stopped where it does not end."""
    program = (
        "import sys; from tools.bench.gpu import command as c\n"
        "real = c.subprocess.Popen\n"
        f"c.subprocess.Popen = lambda words, **k: real([sys.executable, '-c', {DYING!r}, words[-1]], **k)\n"
        "cases = [c.Case('speed', of, 120 if of == 'dies' else 2, False) for of in ('dies', 'hangs')]\n"
        "c.chosen = lambda *_, **__: cases\n"
        f"c.gpu(['--device', 'cpu', '--rehearse', '--json', {str(tmp_path / 'figures.json')!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads((tmp_path / "figures.json").read_text())
    found = report["speed dies"]
    assert found["first"] == 1 and found["second"] == {"failed": findings.DIED} and found["fourth"] == 4
    assert found["third"]["failed"].startswith("ZeroDivisionError") and "failed" not in found
    assert "was stopped" in report["speed hangs"]["failed"]


def test_pieces_that_went_well_are_not_done_again() -> None:
    found = {"first": 1, "decode": {"1": {"us": 3}}, "prefill": {"1": {"us": 3}, "2": {"failed": "no"}}}
    ended = {"failed": "it was stopped", "took_seconds": 3}
    assert findings.sound(found | ended) == {"first": 1, "decode": {"1": {"us": 3}}}
    assert findings.sound(None) == findings.sound({"skipped": "no time was left"}) == {}


def test_whoever_is_told_to_end_ends_its_processes(tmp_path: pathlib.Path) -> None:
    path, pid = tmp_path / "figures.json", tmp_path / "pid"
    sleeper = f"import os, time, pathlib; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))"
    sleeper += "; time.sleep(99)"
    program = (
        "import sys; from tools.bench.gpu import command as c\n"
        "real = c.subprocess.Popen\n"
        f"c.subprocess.Popen = lambda words, **k: real([sys.executable, '-c', {sleeper!r}], **k)\n"
        f"c.gpu(['--device', 'cpu', '--rehearse', '--json', {str(path)!r}, '--section', 'machine'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL) as process:
        while not (pid.exists() and pid.read_text()):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.wait() == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_wrong_tokens_are_told() -> None:
    exact, path = exactness.Gaps(0.0, 0.0, 1.0), exactness.Path("qwen3", "float32")
    rounded = dataclasses.replace(path, dtype="bfloat16")
    near, far = exactness.Gaps(0.4, 0.01, 0.93), exactness.Gaps(3.0, 1.2, 0.5)
    assert exactness.Verdict(path, exact).right and exactness.Verdict(path, refused="no GPU").right
    assert not exactness.Verdict(path, near).right
    assert exactness.Verdict(rounded, near, near).right
    assert not exactness.Verdict(rounded, far, near).right
    assert not exactness.Verdict(dataclasses.replace(rounded, bits="int8"), far, near).right
    assert findings.wrong({"a": exactness.Verdict(path, near).figures()})


def test_cases_in_the_order_of_their_importance() -> None:
    every = cases.chosen((), (), rehearsal=False)
    assert [case.title for case in every[:6]] == [
        "machine",
        *(f"exact {m}" for m in cases.MODELS),
        "speed 8b",
    ]
    assert [len(together) for together in cases.rounds(every)][:3] == [1, 4, 1]
    assert {case.section for case in every} == set(sections.SECTIONS)
    other = cases.chosen(("speed", "exact"), ("14b",), rehearsal=False)
    assert [case.title for case in other] == [*(f"exact {m}" for m in cases.MODELS), "speed 14b"]
    assert {case.of for case in cases.chosen((), (), rehearsal=True)} == {
        "",
        "qwen3",
        "qwen3-moe",
        "smallest",
    }


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
    assert machine.seconds(lambda: None, machine.torch.device("cpu"), 1) < 30
