"""Weight files: read exactly, or refused with a sentence. Never a crash, never a signal."""

from __future__ import annotations

import json
import os
import pathlib
import struct
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gpu.executor import Executor
from gpu.safetensors_file import MAX_HEADER, SafetensorsFile
from gpu.weights import INDEX, SINGLE, Checkpoint, load_into, read_ahead
from protocols.errors import StartError
from tests.gpu.driver import Driver
from tests.gpu.tiny import Tiny, make, prompts

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(7, dtype=torch.int64),
}


@pytest.fixture
def stored(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small valid file, written by the reference implementation."""
    path = tmp_path / SINGLE
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("readers", [0, 1, 3, 8])
def test_what_is_read_ahead_comes_in_its_order(stored: pathlib.Path, readers: int) -> None:
    with Checkpoint(stored.parent) as checkpoint:
        for names in (["b", "a", "scalar", "empty"], []):
            found = list(read_ahead(checkpoint, names, readers))
            assert [name for name, _ in found] == names
            assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in found)
        os.truncate(stored, stored.stat().st_size - 1)
        with pytest.raises(StartError, match="truncated"):
            list(read_ahead(checkpoint, TENSORS, readers))


def write(path: pathlib.Path, header: object, data: bytes) -> None:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_tensors_come_back_as_they_were_written(stored: pathlib.Path) -> None:
    file = SafetensorsFile(stored)
    assert file.entries.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        got = file.read(name)
        assert got.dtype == tensor.dtype
        assert torch.equal(got, tensor)
    file.close()


def _entry(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DEEP = b'{"a":' + b"[" * 100_000

BAD_HEADERS: dict[str, tuple[object, bytes, str]] = {
    "not JSON": (b"{nope", b"", "not valid JSON"),
    "too deep": (DEEP, b"", "not valid JSON"),
    "not an object": ([1, 2], b"", "not a JSON object"),
    "name twice": (b'{"a":{},"a":{}}', b"", "occurs twice"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4, "malformed"),
    "unknown dtype": ({"a": _entry(0, 4, [1], "F4")}, b"\0" * 4, "unsupported dtype F4"),
    "negative dimension": ({"a": _entry(0, 4, [-1, -1])}, b"\0" * 4, "shape"),
    "dimension not a number": ({"a": _entry(0, 4, ["1"])}, b"\0" * 4, "shape"),
    "offsets do not fit": ({"a": _entry(0, 4, [2])}, b"\0" * 4, "do not fit its shape"),
    "offsets backwards": ({"a": _entry(8, 0, [2])}, b"\0" * 8, "do not fit its shape"),
    "shape that overflows": ({"a": _entry(0, 0, [2**40, 2**40])}, b"", "do not fit its shape"),
    "shape that no tensor has": ({"a": _entry(0, 0, [0, 2**70])}, b"", "shape"),
    "a million dimensions": ({"a": _entry(0, 4, [1] * 1_000_000)}, b"\0" * 4, "shape"),
    "an endless product": ({"a": _entry(0, 4, [10**18] * 200_000)}, b"\0" * 4, "shape"),
    "a header of many lists": ({"a": [[]] * 100_000}, b"", "malformed"),
    "a header beyond all models": (b" " * (MAX_HEADER + 1), b"", "claims"),
    "overlap": ({"a": _entry(0, 8, [2]), "b": _entry(4, 12, [2])}, b"\0" * 12, "overlaps"),
    "gap": ({"a": _entry(0, 4, [1]), "b": _entry(8, 12, [1])}, b"\0" * 12, "overlaps"),
    "past the end": ({"a": _entry(0, 400, [100])}, b"\0" * 12, "the file has"),
    "bytes left over": ({"a": _entry(0, 4, [1])}, b"\0" * 12, "the file has"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_malformed_header_is_refused(case: str, tmp_path: pathlib.Path) -> None:
    header, data, reason = BAD_HEADERS[case]
    write(tmp_path / SINGLE, header, data)
    with pytest.raises(StartError, match=reason):
        SafetensorsFile(tmp_path / SINGLE)


@pytest.mark.parametrize("size", [0, 5, 8, 20])
def test_a_truncated_file_is_refused(size: int, stored: pathlib.Path) -> None:
    os.truncate(stored, size)
    with pytest.raises(StartError, match="not a valid safetensors file"):
        SafetensorsFile(stored)


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(stored: pathlib.Path) -> None:
    file = SafetensorsFile(stored)
    os.truncate(stored, file.entries["a"].begin + 3)
    with pytest.raises(StartError, match="truncated while"):
        file.read("a")
    file.close()


def test_an_absurd_header_length_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(StartError, match="claims 9223372036854775808 bytes"):
        SafetensorsFile(tmp_path / SINGLE)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_mutated_files_are_read_or_refused(
    stored: pathlib.Path, changes: list[tuple[float, int]], cut: bool
) -> None:
    """Whatever a few wrong bytes do, nothing but StartError comes out."""
    good = stored.read_bytes()
    bad = bytearray(good)
    for place, value in changes:
        bad[int(place * len(bad))] = value
    path = stored.with_name("bad")
    path.write_bytes(bad[: int(changes[0][0] * len(bad))] if cut else bad)
    try:
        file = SafetensorsFile(path)
    except StartError:
        return
    for name, entry in file.entries.items():
        assert file.read(name).shape == entry.shape
    file.close()


class TestDirectories:
    """Which files a directory's weights are in."""

    @pytest.fixture
    def tiny(self, tmp_path: pathlib.Path) -> Tiny:
        """A model that can be loaded until a test breaks it."""
        return make(tmp_path / "model", "LlamaForCausalLM")

    def shard(self, tiny: Tiny) -> dict[str, Any]:
        """Split the weights over two files; returns the index."""
        with Checkpoint(tiny.path) as whole:
            tensors = {name: whole.read(name) for name in whole.names}
        (tiny.path / SINGLE).unlink()
        index: dict[str, Any] = {"weight_map": {}}
        for number in (1, 2):
            file = f"model-{number:05}-of-00002.safetensors"
            part = dict(list(tensors.items())[number - 1 :: 2])
            save_file(part, tiny.path / file)
            index["weight_map"] |= dict.fromkeys(part, file)
        self.write_index(tiny, index)
        return index

    def write_index(self, tiny: Tiny, index: object) -> None:
        """Replace the index."""
        (tiny.path / INDEX).write_text(json.dumps(index))

    def test_shards(self, tiny: Tiny) -> None:
        self.shard(tiny)
        prompt = prompts(9)[0]
        tiny.check(prompt, Driver(tiny.executor()).generate([prompt], 5)[0])

    def test_links_into_a_store_are_followed(self, tiny: Tiny) -> None:
        (tiny.path / SINGLE).rename(tiny.path.parent / "blob")
        (tiny.path / SINGLE).symlink_to("../blob")
        assert isinstance(tiny.executor(), Executor)

    def test_an_index_that_points_at_the_wrong_shard(self, tiny: Tiny) -> None:
        index = self.shard(tiny)
        names = index["weight_map"]
        names["model.norm.weight"] = next(
            file for file in names.values() if file != names["model.norm.weight"]
        )
        self.write_index(tiny, index)
        with pytest.raises(StartError, match=r"lacks 'model.norm.weight'"):
            tiny.executor()

    def test_a_missing_shard(self, tiny: Tiny) -> None:
        self.shard(tiny)
        (tiny.path / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(StartError, match="No such file"):
            tiny.executor()

    @pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a\0b", "..", 7])
    def test_an_index_that_leaves_the_directory(self, tiny: Tiny, file: object) -> None:
        index = self.shard(tiny)
        index["weight_map"]["model.norm.weight"] = file
        self.write_index(tiny, index)
        with pytest.raises(StartError, match=r"outside its directory|not a regular file"):
            tiny.executor()

    @pytest.mark.parametrize("index", [[], {}, {"weight_map": {}}, {"weight_map": 3}])
    def test_an_index_without_a_map(self, tiny: Tiny, index: object) -> None:
        (tiny.path / SINGLE).unlink()
        self.write_index(tiny, index)
        with pytest.raises(StartError, match="no weight_map"):
            tiny.executor()

    def test_pickled_weights_only(self, tiny: Tiny) -> None:
        (tiny.path / SINGLE).rename(tiny.path / "pytorch_model.bin")
        with pytest.raises(StartError, match="only pickled weights"):
            tiny.executor()

    def test_no_weights(self, tiny: Tiny) -> None:
        (tiny.path / SINGLE).unlink()
        with pytest.raises(StartError, match=r"holds no model.safetensors"):
            tiny.executor()

    def test_a_link_that_leads_nowhere(self, tiny: Tiny) -> None:
        (tiny.path / SINGLE).unlink()
        (tiny.path / SINGLE).symlink_to("nowhere")
        with pytest.raises(StartError, match="leads nowhere"):
            tiny.executor()

    @pytest.mark.parametrize("kind", ["directory", "fifo", "loop"])
    def test_a_shard_that_is_no_file(self, tiny: Tiny, kind: str) -> None:
        self.shard(tiny)
        path = tiny.path / "model-00001-of-00002.safetensors"
        path.unlink()
        match kind:
            case "directory":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case _:
                path.symlink_to(path.name)
        with pytest.raises(StartError, match=r"regular file|symbolic links"):
            tiny.executor()


class TestFit:
    """The checkpoint against what the model needs."""

    def load(self, stored: pathlib.Path, **targets: torch.Tensor) -> list[str]:
        """Load the small file into targets."""
        said: list[str] = []
        with Checkpoint(stored.parent) as checkpoint:
            load_into(checkpoint, targets, ignored=lambda name: name == "scalar", progress=said.append)
        return said

    def targets(self) -> dict[str, torch.Tensor]:
        """Right ones, as views and in another dtype."""
        whole = torch.zeros(5, 4, dtype=torch.float64)
        return {"a": whole[1:4], "b": torch.zeros(2), "empty": torch.zeros(0, 4)}

    def test_views_are_filled_and_dtypes_converted(self, stored: pathlib.Path) -> None:
        targets = self.targets()
        assert self.load(stored, **targets)[-1] == "loading weights: 100 %"
        assert torch.equal(targets["a"], TENSORS["a"].double())
        assert targets["b"].tolist() == [1.5, -2.0]

    def test_missing(self, stored: pathlib.Path) -> None:
        targets = {f"x{number}": torch.zeros(1) for number in range(5)}
        with pytest.raises(StartError, match=r"lack 'x0', 'x1', 'x2' and 2 more tensors"):
            self.load(stored, **self.targets(), **targets)

    def test_unexpected(self, stored: pathlib.Path) -> None:
        targets = self.targets()
        del targets["b"]
        with pytest.raises(StartError, match=r"hold 'b', which the model of config.json does not have"):
            self.load(stored, **targets)

    def test_another_shape_leaves_all_targets_alone(self, stored: pathlib.Path) -> None:
        targets = self.targets() | {"b": torch.zeros(3)}
        with pytest.raises(StartError, match=r"'b' has the shape \[2\], but config.json asks for \[3\]"):
            self.load(stored, **targets)
        assert not targets["a"].any()

    def test_integers_are_quantised_weights(self, stored: pathlib.Path) -> None:
        with pytest.raises(StartError, match="quantised"):
            self.load(stored, **self.targets(), scalar=torch.zeros(()))
