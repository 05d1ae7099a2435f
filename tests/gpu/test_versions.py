"""Weights that change while a model serves: exact, whole or not at all, and back again."""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpu.executor import Executor
from gpu.loading import load_executor
from gpu.safetensors_file import stamp
from gpu.weights import SINGLE
from protocols.config import Quantization
from protocols.errors import StartError
from protocols.weights import File, Source, Weights
from tests.gpu.driver import Driver
from tests.gpu.tiny import Tiny, make, prompts

MANNERS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": Quantization.INT8},
    "torch float32": {"dtype": "float32", "kernels": "torch"},
    "torch bfloat16": {"dtype": "bfloat16", "kernels": "torch"},
}


def source(number: int, *paths: pathlib.Path) -> Source:
    """A checkpoint as the supervisor would tell of it."""
    files = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        files.append(File(path.name, str(path), stamp(fd)))
        os.close(fd)
    return Source(number, str(paths[0].parent), tuple(files))


def no_progress(_text: str) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Tiny]:
    """Two models of one shape."""
    path = tmp_path_factory.mktemp("models")
    return make(path / "a", "Qwen3ForCausalLM", seed=1), make(path / "b", "Qwen3ForCausalLM", seed=2)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Tiny]:
    """The same, of another family, with biases, and the head tied to the embedding."""
    path = tmp_path_factory.mktemp("tied")
    family = "Qwen2ForCausalLM"
    a, b = (make(path / x, family, seed=s, tie_word_embeddings=True) for x, s in (("a", 3), ("b", 4)))
    return a, b


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Tiny]:
    """The same, with experts."""
    path = tmp_path_factory.mktemp("mixture")
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    a, b = (make(path / x, "Qwen3MoeForCausalLM", seed=s, **sizes) for x, s in (("a", 5), ("b", 6)))
    return a, b


def tokens(executor: Executor, seed: int = 1) -> list[list[int]]:
    """What it answers to some prompts."""
    return [output.tokens for output in Driver(executor).generate(prompts(9, 17, seed=seed), 8)]


def update(executor: Executor, weights: Weights) -> tuple[str, ...]:
    """Both phases at once: the names that changed."""
    found = executor.versions.stage(weights, no_progress)
    assert executor.commit(weights.serial)
    return found.changed


@pytest.mark.parametrize(
    ("family", "manner"),
    [*itertools.product(["models", "tied"], MANNERS), ("mixture", "float32"), ("mixture", "torch bfloat16")],
)
def test_a_change_is_as_exact_as_a_start(family: str, manner: str, request: pytest.FixtureRequest) -> None:
    a, b = request.getfixturevalue(family)
    executor, other = a.executor(**MANNERS[manner]), b.executor(**MANNERS[manner])
    before, first = tokens(executor), executor.versions.checksum()
    executor.versions.stage(Weights(2, "b", (source(1, b.path / SINGLE),)), no_progress)
    assert tokens(executor) == before, "what is made ready does not serve"
    assert executor.commit(2)
    assert tokens(executor) == tokens(other) != before
    assert executor.versions.checksum() == other.versions.checksum() != first
    update(executor, Weights(3, "default"))
    assert tokens(executor) == before
    assert executor.versions.checksum() == first


@pytest.mark.parametrize("manner", MANNERS)
def test_some_tensors_of_a_model(models: tuple[Tiny, Tiny], manner: str, tmp_path: pathlib.Path) -> None:
    """Parts of fused tensors, whose other parts stay as they are; and a restart is the same."""
    a, b = models
    new, old = load_file(b.path / SINGLE), load_file(a.path / SINGLE)
    names = ["layers.1.self_attn.k_proj", "layers.0.mlp.up_proj", "norm"]
    names = [f"model.{name}.weight" for name in names]
    part = {name: new[name] for name in names}
    save_file(part, tmp_path / SINGLE)
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in a.path.iterdir():
        (whole / path.name).symlink_to(path)
    (whole / SINGLE).unlink()
    save_file(old | part, whole / SINGLE)
    expected = Tiny(whole, None).executor(**MANNERS[manner])
    executor = a.executor(**MANNERS[manner])
    weights = Weights(2, "part", (source(1, tmp_path / SINGLE),), dtype=MANNERS[manner]["dtype"])
    assert set(update(executor, weights)) == set(names)
    assert executor.versions.checksum() == expected.versions.checksum()
    assert tokens(executor) == tokens(expected)
    restarted = load_executor(a.config(**MANNERS[manner]), no_progress, weights=weights)
    assert restarted.versions.checksum() == executor.versions.checksum()
    assert restarted.versions.live.homes == executor.versions.live.homes


@pytest.mark.parametrize("manner", ["float32", "bfloat16", "torch float32", "torch bfloat16"])
@pytest.mark.parametrize("family", ["models", "tied", "mixture"])
def test_every_tensor_can_be_read_back(family: str, manner: str, request: pytest.FixtureRequest) -> None:
    executor = request.getfixturevalue(family)[0].executor(**MANNERS[manner])
    stored = load_file(request.getfixturevalue(family)[0].path / SINGLE)
    for name, tensor in stored.items():
        dtype, shape, numbers = executor.versions.peek(name, 10_000_000)
        assert shape == tuple(tensor.shape)
        assert torch.equal(torch.tensor(numbers), tensor.to(getattr(torch, dtype)).float().flatten()), name
    with pytest.raises(KeyError):
        executor.versions.peek("model.layers.0.nothing", 1)


def test_8_bit_weights_are_read_back_as_what_they_stand_for(models: tuple[Tiny, Tiny]) -> None:
    executor = models[0].executor(**MANNERS["int8"])
    name = "model.layers.1.mlp.up_proj.weight"
    want = load_file(models[0].path / SINGLE)[name]
    _, _, numbers = executor.versions.peek(name, 10_000_000)
    got = torch.tensor(numbers).view(want.shape)
    assert (got - want).abs().max() < want.abs().max() / 100


def test_through_transformers(tmp_path: pathlib.Path) -> None:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    a, b = (make(tmp_path / x, "GPT2LMHeadModel", seed=s, **sizes) for x, s in (("a", 1), ("b", 2)))
    executor, other = a.executor(), b.executor()
    before, first = tokens(executor), executor.versions.checksum()
    weights = Weights(2, "b", (source(1, b.path / SINGLE),))
    executor.versions.stage(weights, no_progress)
    assert tokens(executor) == before
    assert executor.commit(2)
    assert tokens(executor) == tokens(other) != before
    assert executor.versions.checksum() == other.versions.checksum() != first
    restarted = load_executor(a.config(), no_progress, weights=weights)
    assert restarted.versions.checksum() == other.versions.checksum()
    assert executor.versions.peek("transformer.wte.weight", 1)[0] == "float32"


class TestRefusals:
    """Whatever is wrong with a checkpoint, nothing has changed."""

    @pytest.fixture
    def executor(self, models: tuple[Tiny, Tiny]) -> Executor:
        """One that serves."""
        return models[0].executor()

    def refused(self, executor: Executor, weights: Weights, reason: str) -> None:
        """`weights` cannot be had, and what serves is what served."""
        before = executor.versions.live
        with pytest.raises(StartError, match=reason):
            executor.versions.stage(weights, no_progress)
        assert executor.versions.live is before
        assert executor.versions.staged is None
        assert not executor.commit(weights.serial)

    def part(self, path: pathlib.Path, **tensors: torch.Tensor) -> Weights:
        """A change to these."""
        save_file(tensors, path / SINGLE)
        return Weights(2, "x", (source(1, path / SINGLE),))

    def test_another_shape(self, executor: Executor, tmp_path: pathlib.Path) -> None:
        weights = self.part(tmp_path, **{"model.norm.weight": torch.zeros(65)})
        self.refused(executor, weights, r"has the shape \[65\]")

    def test_an_unknown_name(self, executor: Executor, tmp_path: pathlib.Path) -> None:
        part = self.part(tmp_path, nobody=torch.zeros(3))
        self.refused(executor, part, f"the weights in {part.sources[0].title} hold 'nobody'")

    def test_integers(self, executor: Executor, tmp_path: pathlib.Path) -> None:
        weights = self.part(tmp_path, **{"model.norm.weight": torch.zeros(64, dtype=torch.int8)})
        self.refused(executor, weights, "quantised")

    def test_a_file_that_was_cut_off(self, executor: Executor, tmp_path: pathlib.Path) -> None:
        weights = self.part(tmp_path, **{"model.norm.weight": torch.zeros(64)})
        os.truncate(tmp_path / SINGLE, 200)
        self.refused(executor, weights, "written to since")
        self.refused(executor, Weights(2, "x", (source(1, tmp_path / SINGLE),)), "not a valid safetensors")

    def test_a_file_that_was_written_again(self, executor: Executor, tmp_path: pathlib.Path) -> None:
        weights = self.part(tmp_path, **{"model.norm.weight": torch.zeros(64)})
        os.utime(tmp_path / SINGLE, ns=(1, 1))
        self.refused(executor, weights, "written to since")

    def test_what_was_made_ready_is_forgotten(self, executor: Executor, models: tuple[Tiny, Tiny]) -> None:
        executor.versions.stage(Weights(2, "b", (source(1, models[1].path / SINGLE),)), no_progress)
        executor.versions.discard()
        assert not executor.commit(2)
        assert executor.commit(1), "what serves is what was asked for"
