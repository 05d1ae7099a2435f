"""What is held of a model's directory and of an adapter from a company's start on."""

from __future__ import annotations

import json
import pathlib

import pytest

from protocols.adapters import CONFIG, WEIGHTS, Adapter, digest_of
from protocols.config import Config, Keep, ModelCard
from protocols.errors import VerbError
from protocols.weights import INDEX, SINGLE
from runtime.holdings import Holdings
from runtime.keeping import keep


def write(directory: pathlib.Path, *names: str) -> pathlib.Path:
    """Files that hold their own names."""
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text(name)
    return directory


def config(directory: pathlib.Path, how: Keep) -> Config:
    return Config(ModelCard("m", str(directory), "X", 10, 10, ()), keep_weights=how)


@pytest.mark.parametrize("how", Keep)
def test_a_directory_that_is_no_longer_there(tmp_path: pathlib.Path, how: Keep) -> None:
    path, holdings = write(tmp_path / "m", "config.json", SINGLE, "other.safetensors"), Holdings()
    card = keep(holdings, config(path, how)).model
    assert {file.name for file in card.files} == {"config.json", SINGLE}
    for name in ("config.json", SINGLE):
        (path / name).unlink()
        assert card.file(name).read_text() == name
    assert card.file("tokenizer.json") == path / "tokenizer.json", "there was none"


@pytest.mark.parametrize("how", Keep)
def test_files_that_are_written_over(tmp_path: pathlib.Path, how: Keep) -> None:
    path, holdings = write(tmp_path / "m", "config.json", SINGLE), Holdings()
    card = keep(holdings, config(path, how)).model
    assert all(map(holdings.intact, card.files))
    for name in ("config.json", SINGLE):
        (path / name).write_text("something else")
    assert card.file("config.json").read_text() == "config.json"
    assert all(map(holdings.intact, card.files)) is (how is Keep.COPY)
    assert (card.file(SINGLE).read_text() == SINGLE) is (how is Keep.COPY)


def test_several_files_of_weights(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "m", "a.safetensors", "b.safetensors", "c.safetensors")
    (path / INDEX).write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}))
    card = keep(Holdings(), config(path, Keep.OPEN)).model
    assert [file.name for file in card.files] == [INDEX, "a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    "index", ["x", "[]", "{}", '{"weight_map": {"x": 1}}', '{"weight_map": {"x": "../y"}}']
)
def test_what_tells_of_no_files(tmp_path: pathlib.Path, index: str) -> None:
    path = write(tmp_path / "m", "y")
    (path / INDEX).write_text(index)
    assert [file.name for file in keep(Holdings(), config(path, Keep.OPEN)).model.files] == [INDEX]


def test_adapters(tmp_path: pathlib.Path) -> None:
    path, holdings = write(tmp_path / "a", CONFIG, WEIGHTS), Holdings()
    options = config(tmp_path, Keep.OPEN)
    given = Adapter(1, "a", str(path), digest_of(path))
    (kept,) = keep(holdings, Config(options.model, loras=(given,))).loras
    for file in (CONFIG, WEIGHTS):
        (path / file).unlink()
    assert kept.digest_now() == given.digest
    with pytest.raises(OSError, match="No such file"):
        given.digest_now()


def test_a_copy_of_what_is_being_written(tmp_path: pathlib.Path) -> None:
    path, holdings = write(tmp_path, SINGLE) / SINGLE, Holdings()
    held = holdings.hold(str(path), SINGLE)
    path.write_text("x")
    with pytest.raises(VerbError, match="written to while it was read"):
        holdings.copy(held, SINGLE)
