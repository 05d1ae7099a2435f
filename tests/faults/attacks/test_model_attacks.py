"""Model directories that mean harm: code and pickles that must never run, files that lie."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import uuid

import pytest

from actors.tokenizer.codec import load_codec
from protocols.config import read_model_card
from protocols.errors import StartError
from tests.faults.attacks.siege import CHAT, post
from tests.serving import ACTORCTL, ROOT, serving
from tools.actorctl.serve import DEMO_MODEL

MODULES = ("configuration_evil", "modeling_evil", "tokenization_evil", "sitecustomize", "torch", "json")
AUTO_MAP = {
    "AutoConfig": "configuration_evil.Evil",
    "AutoModelForCausalLM": "modeling_evil.Evil",
    "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"],
}


def evil(folder: pathlib.Path, **config: object) -> tuple[pathlib.Path, pathlib.Path]:
    """A copy of the demo model that names code of its own wherever code can be named, and the file that
    appears where any of it runs."""
    model, mark = folder / "model", folder / "it-ran"
    model.mkdir()
    for file in DEMO_MODEL.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    for name in ("config.json", "tokenizer_config.json"):
        document = json.loads((model / name).read_bytes()) | {"auto_map": AUTO_MAP}
        document |= config if name == "config.json" else {"tokenizer_class": "Evil"}
        (model / name).write_text(json.dumps(document))
    for name in MODULES:
        (model / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    # What pickle would do with these bytes is to call os.system.
    bomb = b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "scheduler.pt"):
        (model / name).write_bytes(bomb)
    return model, mark


def refused(model: pathlib.Path) -> str:
    """What `actorctl serve` says of a model that it must refuse."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    done = subprocess.run(
        [*ACTORCTL, "serve", str(model), "--name", name, "--port", "0"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_code_and_pickles_beside_a_good_model_never_run(tmp_path: pathlib.Path) -> None:
    model, mark = evil(tmp_path)
    with serving(model=str(model)) as company:
        message = {"role": "user", "content": "hi"}
        body = {"model": company.model, "messages": [message], "max_tokens": 3}
        assert post(company, CHAT, body)[0] == 200
        company.kill("executor.0")
        assert post(company, CHAT, body)[0] == 200
        assert company.stop() == 0
    assert not mark.exists()


def test_a_model_that_is_only_code_is_refused(tmp_path: pathlib.Path) -> None:
    model, mark = evil(tmp_path, architectures=["EvilForCausalLM"], model_type="evil")
    assert "unsupported architecture EvilForCausalLM" in refused(model)
    assert not mark.exists()


def test_a_model_that_is_only_a_pickle_is_refused(tmp_path: pathlib.Path) -> None:
    model, mark = evil(tmp_path)
    (model / "model.safetensors").unlink()
    assert "only pickled weights, which can run code" in refused(model)
    assert not mark.exists()


def test_weights_whose_header_lies_are_refused(tmp_path: pathlib.Path) -> None:
    model, _ = evil(tmp_path)
    with (model / "model.safetensors").open("r+b") as file:
        file.write((2**62).to_bytes(8, "little"))
    assert "its header claims" in refused(model)


def test_a_tokenizer_that_is_only_code_is_refused(tmp_path: pathlib.Path) -> None:
    model, mark = evil(tmp_path)
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text("{}")
    with pytest.raises(StartError, match="cannot be converted"):
        load_codec(model)
    assert not mark.exists()


CONFIGS = {
    "deep": b'{"a":' + b"[" * 100_000,
    "not JSON": b"{nope",
    "not UTF-8": b'{"architectures": ["\xff"]}',
    "a list": b"[]",
    "endless digits": b'{"architectures": ["LlamaForCausalLM"], "vocab_size": ' + b"9" * 5000 + b"}",
    "too large": b" " * (17 * 1024 * 1024),
    "no architecture": b'{"architectures": [7]}',
    "a negative size": b'{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": -1}',
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_bad_config_is_a_sentence(case: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIGS[case])
    with pytest.raises(StartError) as caught:
        read_model_card(tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["directory", "fifo", "loop", "missing"])
def test_a_config_that_is_no_file_is_a_sentence(kind: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.json"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)
        case _:
            pass
    with pytest.raises(StartError):
        read_model_card(tmp_path)
