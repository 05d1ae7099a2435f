"""Reading safetensors files without trusting them.

The format (https://huggingface.co/docs/safetensors): u64 little-endian length of a JSON header, the
header (name -> dtype, shape, data_offsets), then the data. The whole header is checked against the
file's size before anything is read, and tensors are *read*, not mapped: a file that is truncated or
replaced under us is an error with a sentence, where a mapping would be a SIGBUS or changed weights
in a serving engine. The bytes are copied out of the page cache once either way, because they
go into fused tensors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import stat
from collections.abc import Iterable

import torch

from protocols.errors import StartError

MAX_HEADER = 16 * 1024 * 1024
"""Bytes of JSON header at most: of a hundred thousand tensors. Its values take forty times as much memory."""
MAX_DIMENSIONS = 8
MAX_DIMENSION = 1 << 40

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its dtype and shape, and its bytes at `begin` .. `end` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An open, checked file. `entries` is in the order of the data. Close it when done."""

    def __init__(
        self,
        path: pathlib.Path,
        expected: tuple[int, int] | None = None,
        title: pathlib.Path | None = None,
    ) -> None:
        """Open and check `path`; StartError with a sentence when it is not exactly a safetensors file, or
        not of the `expected` stamp. title: its name for people, where `path` is not."""
        self.path = title or path
        self._fd = _open_regular(path, self.path)
        self._stamp = expected or stamp(self._fd)
        try:
            self.confirm()
            self.entries = _read_header(self._fd, self.path)
        except BaseException:
            os.close(self._fd)
            raise

    def confirm(self) -> None:
        """StartError where somebody has written to the file."""
        if stamp(self._fd) != self._stamp:
            raise StartError(f"the weights {self.path} have been written to since they were chosen.")

    def read(self, name: str) -> torch.Tensor:
        """A fresh CPU tensor with the stored dtype and shape of `name`."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if tensor.numel():
            _read_exactly(self._fd, tensor.view(-1).view(torch.uint8).numpy().data, entry.begin, self.path)
        return tensor

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)


def header(tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> bytes:
    """How a file begins that holds these tensors, one behind the other."""
    names, entries, at = {dtype: name for name, dtype in DTYPES.items()}, {}, 0
    for name, dtype, shape in tensors:
        end = at + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def stamp(fd: int) -> tuple[int, int]:
    """Size, and time of the last change (ns), of an open file: as `protocols.weights.File.stamp`."""
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


def _open_regular(path: pathlib.Path, title: pathlib.Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise StartError(f"cannot read the weights {title}: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StartError(f"the weights {title} are not a regular file.")
    return fd


def _read_exactly(fd: int, target: memoryview, offset: int, path: pathlib.Path) -> None:
    done = 0
    while done < len(target):
        try:
            count = os.preadv(fd, [target[done : done + (1 << 30)]], offset + done)
        except OSError as error:
            raise StartError(f"cannot read the weights {path}: {error.strerror}.") from error
        if count == 0:
            raise StartError(f"the weights {path} were truncated while they were read.")
        done += count


def _read_header(fd: int, path: pathlib.Path) -> dict[str, Entry]:
    size = os.fstat(fd).st_size
    if size < 8:
        raise _corrupt(path, f"{size} bytes are too few for a header")
    prefix = bytearray(8)
    _read_exactly(fd, memoryview(prefix), 0, path)
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER, size - 8):
        raise _corrupt(path, f"its header claims {length} bytes of a file of {size}")
    raw = bytearray(length)
    _read_exactly(fd, memoryview(raw), 8, path)
    try:
        header = json.loads(bytes(raw), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry(name, value, 8 + length, path) for name, value in header.items()}
    return _check_cover(entries, 8 + length, size, path)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _entry(name: str, value: object, data: int, path: pathlib.Path) -> Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise _corrupt(path, f"its entry for {name!r} is malformed")
    if dtype not in DTYPES:
        raise StartError(f"tensor {name!r} in {path} has the unsupported dtype {dtype}.")
    if len(shape) > MAX_DIMENSIONS or not all(
        type(dim) is int and 0 <= dim <= MAX_DIMENSION for dim in shape
    ):
        raise _corrupt(path, f"the shape of {name!r} is malformed")
    if not 0 <= begin <= end or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _corrupt(path, f"the offsets of {name!r} do not fit its shape")
    return Entry(DTYPES[dtype], tuple(shape), data + begin, data + end)


def _check_cover(entries: dict[str, Entry], data: int, size: int, path: pathlib.Path) -> dict[str, Entry]:
    """The tensors must follow one another without gap or overlap and end where the file ends."""
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    at = data
    for name, entry in ordered.items():
        if entry.begin != at:
            raise _corrupt(path, f"tensor {name!r} overlaps its neighbour or leaves a gap")
        at = entry.end
    if at != size:
        raise _corrupt(path, f"its tensors end at byte {at}, but the file has {size}")
    return ordered


def _corrupt(path: pathlib.Path, reason: str) -> StartError:
    return StartError(f"the weights {path} are not a valid safetensors file: {reason}.")
