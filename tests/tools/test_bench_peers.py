"""The comparison with peers: its models, its protocol with real processes, its rounds and its arithmetic."""

from __future__ import annotations

import json
import pathlib
import runpy
import signal
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from tools.bench.__main__ import main
from tools.bench.peers import bandwidth, engines, measure, models, report, tokenizer
from tools.bench.peers.cases import CASES, Case
from tools.bench.peers.subjects import Child, Failed, Runner

TINY = models.SHAPES["llama15m"] | {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
TINY_CASES = (Case("D1", 1, 8, 4), Case("S16", 3, 4, 3, shared=20), Case("C64", 4, 16, 4, clients=2))

FAKE = """
import os, sys

def load(model, threads, context):
    print("noise on stdout")
    if model == "broken":
        raise ValueError("no such model")

    def generate(prompts, output):
        if output == 13:
            print("about to die", file=sys.stderr, flush=True)
            os._exit(3)
        return [[sum(prompt) + i for i in range(output)] for prompt in prompts]

    return "1.2", generate
"""


@pytest.fixture
def child(tmp_path: pathlib.Path) -> Iterator[Child]:
    """The real runner with an engine of our own, in a real process."""
    (tmp_path / "fake.py").write_text(FAKE)
    runner = tmp_path / "runner.py"
    runner.write_text((engines.RUNNERS / "runner.py").read_text())
    with Child([sys.executable, str(runner), "fake"], {}, tmp_path / "log") as child:
        yield child


SETUP = {"model": "m", "threads": 1, "context": 9}


def test_a_runner_answers_batches(child: Child) -> None:
    runner = Runner(child, SETUP)
    assert runner.version == "1.2"
    figure = runner.batch([[1, 2], [5]], 2)
    assert figure["tokens"] == [[3, 4], [5, 6]] and figure["seconds"] > 0
    assert "noise on stdout" in child.log.read_text()


def test_a_runner_is_stopped_while_it_is_not_its_turn(child: Child) -> None:
    runner = Runner(child, SETUP)
    _await_state(child, "T")
    assert runner.batch([[1]], 1)["tokens"] == [[1]]
    _await_state(child, "T")


def _await_state(child: Child, state: str) -> None:
    stat = pathlib.Path(f"/proc/{child.process.pid}/stat")
    deadline = time.monotonic() + 60
    while stat.read_text().rpartition(") ")[2][0] != state:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_runner_that_cannot_load_tells_why(child: Child) -> None:
    with pytest.raises(Failed, match="no such model"):
        Runner(child, SETUP | {"model": "broken"})


def test_a_runner_that_dies_leaves_its_last_words(child: Child) -> None:
    runner = Runner(child, SETUP)
    with pytest.raises(Failed, match="about to die"):
        runner.batch([[1]], 13)


def test_a_stopped_group_ends_with_its_block_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    code = (
        "import os, subprocess, sys\n"
        "helper = subprocess.Popen(['sleep', '1000'])\n"
        "open(f'/dev/shm/__KMP_REGISTERED_LIB_{helper.pid}_0', 'w').close()\n"
        "print(helper.pid, flush=True)\n"
        "input()\n"
    )
    with Child([sys.executable, "-c", code], {}, tmp_path / "log") as child:
        assert child.process.stdout is not None
        helper = int(child.process.stdout.readline())
        child.signal(signal.SIGSTOP)
    assert child.process.returncode == -signal.SIGTERM
    assert not list(pathlib.Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{helper}_*"))


def test_a_server_may_say_much_and_hears_nothing(tmp_path: pathlib.Path) -> None:
    code = "import sys; print('x' * 300_000); sys.exit(len(sys.stdin.read()))"
    with Child([sys.executable, "-c", code], {}, tmp_path / "log", piped=False) as child:
        assert child.process.wait(60) == 0
    assert len(child.log.read_text()) == 300_001


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2]], 1), ([[1], [1, 2]], 0), ([[1, 2], [3, 2]], 0)],
)
def test_what_llama_cpp_prefills_once(
    monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]], shared: int
) -> None:
    for absent in ("llama_cpp", "gguf_file"):
        monkeypatch.setitem(sys.modules, absent, types.ModuleType(absent))
    loaded = runpy.run_path(str(engines.RUNNERS / "llama_cpp_engine.py"))
    assert loaded["_common"](prompts) == shared


@pytest.mark.parametrize("size", [tokenizer.FIRST_WORD, 1000, 32000])
def test_a_tokenizer_has_its_size(size: int) -> None:
    built = tokenizer.build(size)
    assert built.get_vocab_size() == size
    assert len(built.encode("0123456789" * 5).ids) == 50
    assert all(built.decode([token]) for token in range(tokenizer.FIRST_WORD, size, 97))


def test_prompts_share_what_they_should_and_differ_by_seed() -> None:
    case = Case("x", 3, 4, 2, shared=5)
    prompts = case.prompts(1000, [1])
    assert [len(prompt) for prompt in prompts] == [9, 9, 9]
    assert len({tuple(prompt[:5]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == 3
    assert prompts == case.prompts(1000, [1]) != case.prompts(1000, [2])
    assert case.tokens == 6 and Case("p", 1, 7, 1).tokens == 7


def test_the_shapes_have_their_sizes() -> None:
    sizes = {
        name: sum(
            shape[0] * (shape[1] if len(shape) > 1 else 1) for _, shape in models.tensors(models.SHAPES[name])
        )
        for name in models.SHAPES
    }
    assert sizes == {"qwen3": 596_049_920, "llama15m": 14_520_576}


def test_bandwidth_is_measured() -> None:
    assert bandwidth.here(1, 1 << 22) > 0


def test_a_model_is_made_once_and_alike(tmp_path: pathlib.Path) -> None:
    first = models.write(TINY, tmp_path / "a", seed=1)
    again = models.write(TINY, tmp_path / "b", seed=1)
    other = models.write(TINY, tmp_path / "c", seed=2)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]
    assert Tokenizer.from_file(str(first / "tokenizer.json")).get_vocab_size() == 1000
    (first / "config.json").write_text("kept")
    assert models.write(TINY, tmp_path / "a", seed=1) == first
    assert (first / "config.json").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.timeout(400)
def test_troupe_and_a_real_peer_are_measured_in_one_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer is transformers, in this very environment; a third engine is broken and spoils nothing."""
    monkeypatch.setitem(models.SHAPES, "tiny", TINY)
    monkeypatch.setitem(models.TITLES, "tiny", "Tiny")
    monkeypatch.setattr(bandwidth, "measured", lambda threads: 10.0)
    python = tmp_path / "transformers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    broken = engines.Engine("vllm", "transformers", engines.runner("no_such_engine"))
    chosen = [broken, *(each for each in engines.ENGINES if each.name in ("troupe", "transformers"))]
    assert all(engine.installed(tmp_path) for engine in chosen)
    assert not engines.ENGINES[1].installed(tmp_path)
    kept: list[dict[str, Any]] = []
    plan = measure.Plan(
        models=["tiny"],
        cases=TINY_CASES,
        engines=chosen,
        rounds=1,
        peers=tmp_path,
        cache=tmp_path / "cache",
        threads=1,
        options=["--threads", "1"],
        say=lambda text: None,
        keep=lambda figures: kept.append(json.loads(json.dumps(figures))),
    )
    figures = measure.measure(plan)
    part = figures["models"]["tiny"]
    assert list(part["failures"]) == ["vllm"] and "no_such_engine" in part["failures"]["vllm"]
    assert {case: set(columns) for case, columns in part["cases"].items()} == {
        "D1": {"troupe", "transformers"},
        "S16": {"troupe", "transformers"},
        "C64": {"troupe", "troupe-websocket"},
    }
    assert all(len(taken) == 1 for case in part["cases"].values() for taken in case.values())
    assert len(kept) == 2 and kept[-1] == figures
    assert report.agreement(part, "transformers") is not None
    text = "\n".join(report.lines(figures))
    assert "### Tiny" in text and "Troupe, WebSocket" in text and "vLLM in-process failed" in text


def _figures() -> dict[str, Any]:
    def taken(*values: float, first: int = 1) -> list[dict[str, Any]]:
        return [{"rate": value, "seconds": 1.0, "first": [[first], [2]]} for value in values]

    latencies = dict.fromkeys(
        ("requests_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms"), 5.0
    )
    streams = [{"rate": rate, "seconds": 1.0, **latencies} for rate in (300.0, 100.0)]
    part = {
        "bytes": 2_000_000_000,
        "read_gb_s": [20.0, 40.0, 30.0],
        "versions": {"troupe": "0.1", "vllm": "0.32", "llama.cpp": "0.3", "vllm-serve": "0.32"},
        "failures": {"transformers": "it ended"},
        "cases": {
            "D1": {
                "troupe": taken(12.0, 9.0, 10.0),
                "vllm": taken(6.0, 6.0, 5.0),
                "llama.cpp": taken(4.0, 99.0, 4.0, first=7),
            },
            "C64": {"troupe": streams, "troupe-websocket": streams[::-1], "vllm-serve": streams},
        },
    }
    return {"taken": "then", "machine": "this", "threads": 2, "models": {"qwen3": part}}


def test_ratios_are_to_the_best_median_within_rounds() -> None:
    part = _figures()["models"]["qwen3"]
    assert report.best_peer(part, "D1") == "vllm"
    found = report.ratio(part, "D1")
    assert found is not None and (found.median, found.low, found.high) == (2.0, 1.5, 2.0)
    assert report.decode_limit(part).median == 15.0
    assert report.agreement(part, "vllm") == 1.0 and report.agreement(part, "llama.cpp") == 0.5
    del part["cases"]["D1"]["vllm"], part["cases"]["D1"]["llama.cpp"]
    assert report.ratio(part, "D1") is None


def test_the_table_tells_everything() -> None:
    text = report.lines(_figures())
    assert "| Troupe 0.1 | 10 (9–12) |" in text
    assert "| **Troupe ÷ best peer** | **2 (1.5–2)** |" in text
    assert any(line.startswith("Memory is read at 30 (20–40) GB/s") and "0.667." in line for line in text)
    assert any(line.startswith("| Troupe, WebSocket | 5 (5–5) | 200 (100–300) |") for line in text)
    assert "transformers generate failed: it ended" in text


def test_figures_are_shown_and_drawn_again(tmp_path: pathlib.Path) -> None:
    source, picture = tmp_path / "figures.json", tmp_path / "peers.png"
    source.write_text(json.dumps(_figures()))
    done = CliRunner().invoke(main, ["peers", "--from", str(source), "--picture", str(picture)])
    assert done.exit_code == 0, done.output
    assert "Troupe ÷ best peer" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("option", "value"), [("--models", "gpt"), ("--cases", "D1,D2"), ("--only", "us")])
def test_an_unknown_name_is_refused(option: str, value: str) -> None:
    done = CliRunner().invoke(main, ["peers", option, value])
    assert done.exit_code == 2 and "is not one of" in done.output


def test_every_case_fits_the_context() -> None:
    assert all(case.shared + case.own + case.output <= engines.CONTEXT for case in CASES.values())
