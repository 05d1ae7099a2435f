"""Adapter directories: what is read, and what is refused with which sentence, before anything changes."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpu.lora.base import Changes
from gpu.lora.peft import read_adapter
from protocols.adapters import CONFIG, WEIGHTS, Adapter
from protocols.errors import UserError

SHAPES = {
    "layers.0.self_attn.q_proj": (8, 4),
    "layers.0.mlp.down_proj": (4, 6),
    "layers.1.self_attn.q_proj": (8, 4),
}
PREFIX = "base_model.model.model."


def tensors(rank: int = 2, module: str = "layers.0.self_attn.q_proj") -> dict[str, torch.Tensor]:
    """A and B of one module."""
    n, k = SHAPES.get(module, (8, 4))
    name = f"{PREFIX}{module}"
    return {
        f"{name}.lora_A.weight": torch.arange(rank * k).reshape(rank, k).float(),
        f"{name}.lora_B.weight": torch.ones(n, rank),
    }


def write(path: pathlib.Path, held: dict[str, torch.Tensor] | None = None, **settings: Any) -> pathlib.Path:
    """An adapter directory."""
    path.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"]}
    (path / CONFIG).write_text(json.dumps(config | settings))
    save_file(tensors() if held is None else held, path / WEIGHTS)
    return path


def read(path: pathlib.Path) -> tuple[Changes, str]:
    """The adapter in a directory, of rank 8 at most."""
    return read_adapter(Adapter(1, "a", str(path), ""), SHAPES, 8)


def test_matrices_scale_and_digest(tmp_path: pathlib.Path) -> None:
    changes, digest = read(write(tmp_path / "a"))
    (module, change), *others = changes.items()
    assert (module, others) == ("layers.0.self_attn.q_proj", [])
    assert (change.down.shape, change.up.shape, change.scale) == ((2, 4), (8, 2), 3.0)
    assert read(write(tmp_path / "b"))[1] == digest
    assert read(write(tmp_path / "c", lora_alpha=7))[1] != digest


def test_patterns_name_a_module_or_the_end_of_its_name(tmp_path: pathlib.Path) -> None:
    held = tensors(3) | tensors(5, "layers.0.mlp.down_proj") | tensors(2, "layers.1.self_attn.q_proj")
    path = write(
        tmp_path / "a",
        held,
        use_rslora=True,
        rank_pattern={r"^model\.layers\.0\.self_attn.q_proj$": 3, "down_proj": 5, "proj": 7},
        alpha_pattern={"self_attn.q_proj": 4.5, "^q_proj": 9},
    )
    scales = {module: change.scale for module, change in read(path)[0].items()}
    assert scales == {
        "layers.0.self_attn.q_proj": 4.5 / math.sqrt(3),
        "layers.0.mlp.down_proj": 6 / math.sqrt(5),
        "layers.1.self_attn.q_proj": 4.5 / math.sqrt(2),
    }


SETTINGS = {
    "type": ({"peft_type": "LOHA"}, "an adapter of the type 'LOHA', not LORA"),
    "rank": ({"r": 0}, "r must be a positive number, not 0"),
    "rank-text": ({"r": "8"}, "r must be a positive number, not '8'"),
    "alpha": ({"lora_alpha": float("nan")}, "lora_alpha must be a positive number"),
    "bias": ({"bias": "lora_only"}, "bias 'lora_only' is not supported"),
    "dora": ({"use_dora": True}, "'use_dora' is not supported"),
    "saved": ({"modules_to_save": ["lm_head"]}, "'modules_to_save' is not supported"),
    "unknown": ({"a_new_trick": {"x": 1}}, "'a_new_trick' is not supported"),
    "start": ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base model's weights"),
    "start-list": ({"init_lora_weights": [1]}, "init_lora_weights [1] changes"),
    "pattern": (
        {"rank_pattern": {"(a+)+b": 2}},
        "rank_pattern has the pattern '(a+)+b'; only modules' names",
    ),
    "pattern-value": ({"alpha_pattern": {"q_proj": -1}}, "q_proj must be a positive number, not -1"),
    "pattern-list": ({"alpha_pattern": [1]}, "alpha_pattern must be an object"),
    "too-large": ({"r": 9}, "has rank 9 at layers.0.self_attn.q_proj, but --max-lora-rank is 8"),
    "other-rank": ({"r": 3}, "[2, 4], but the model and the adapter's configuration ask for [3, 4]"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_configuration_that_is_not_served(tmp_path: pathlib.Path, case: str) -> None:
    settings, sentence = SETTINGS[case]
    with pytest.raises(UserError) as refusal:
        read(write(tmp_path / "a", **settings))
    assert sentence in str(refusal.value)


def changed(**others: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of one module, some of them replaced."""
    replaced = {f"{PREFIX}layers.0.self_attn.q_proj.lora_{part}.weight": x for part, x in others.items()}
    return tensors() | replaced


TENSORS = {
    "embeddings": (
        tensors() | {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 4)},
        "changes embeddings or the output head",
    ),
    "head": (tensors() | {"base_model.model.lm_head.lora_A.weight": torch.ones(2, 4)}, "or the output head"),
    "magnitude": (
        tensors() | {f"{PREFIX}layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(8)},
        "is a DoRA adapter",
    ),
    "module": (
        tensors(module="layers.7.self_attn.q_proj"),
        "changes 'layers.7.self_attn.q_proj', which the model does not have",
    ),
    "foreign": ({"something": torch.ones(1)}, "'something', which is neither lora_A nor lora_B"),
    "nothing": ({}, "holds no tensors"),
    "half": ({name: x for name, x in tensors().items() if "lora_A" in name}, "holds only lora_A of layers.0"),
    "twice": (
        tensors() | {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 4)},
        "holds lora_A of layers.0.self_attn.q_proj twice",
    ),
    "shape": (changed(B=torch.ones(7, 2)), "lora_B of layers.0.self_attn.q_proj has the shape [7, 2]"),
    "dtype": (changed(A=torch.ones(2, 4, dtype=torch.int32)), "has the dtype torch.int32"),
    "infinite": (changed(B=torch.full((8, 2), torch.inf)), "numbers that are not finite"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_weights_that_do_not_fit(tmp_path: pathlib.Path, case: str) -> None:
    held, sentence = TENSORS[case]
    with pytest.raises(UserError) as refusal:
        read(write(tmp_path / "a", held))
    assert sentence in str(refusal.value)


def test_directories_that_are_none(tmp_path: pathlib.Path) -> None:
    def sentence() -> str:
        with pytest.raises(UserError) as refusal:
            read(path)
        return str(refusal.value)

    path = tmp_path / "a"
    assert "there is no adapter directory" in sentence()
    path.mkdir()
    assert f"cannot read {path / CONFIG}" in sentence()
    os.mkfifo(path / CONFIG)
    assert "it is not a regular file" in sentence()
    (path / CONFIG).unlink()
    (path / CONFIG).write_text("[" * 100_000)
    assert "is not valid JSON" in sentence()
    (path / CONFIG).write_text("[]")
    assert "must hold a JSON object" in sentence()
    write(path)
    (path / WEIGHTS).write_bytes(b"\xff" * 40)
    assert "not a valid safetensors file" in sentence()
    (path / WEIGHTS).unlink()
    assert f"holds no {WEIGHTS}" in sentence()
    (path / "adapter_model.bin").write_bytes(b"")
    assert "only pickled weights" in sentence()
