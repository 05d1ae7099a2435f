"""A checkpoint's weights: finding the files, checking every name, shape and dtype, then copying.

Safetensors only: a directory with nothing but pickled weights is refused. Nothing is written into
the model before all of the checkpoint has been validated against it.
"""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from gpu.safetensors_file import Entry, SafetensorsFile
from protocols.errors import StartError
from protocols.weights import INDEX, SINGLE, Source

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_READERS = 8
"""Tensors for a GPU that are read at a time: one thread fills fresh memory far slower than the device takes
it."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Tensors(Protocol):
    """Tensors by name, from wherever. title: what people call the whole."""

    title: str

    @property
    def names(self) -> Collection[str]:
        """Of all tensors."""

    def entry(self, name: str) -> Entry:
        """Dtype and shape of a tensor."""

    def read(self, name: str) -> torch.Tensor:
        """A fresh CPU tensor as stored."""

    def finite(self, name: str) -> bool:
        """Whether a tensor is refused that is infinite or NaN somewhere."""

    def title_of(self, name: str) -> str:
        """What people call the checkpoint that a tensor is read from."""


class Checkpoint:
    """The tensors of a directory, by name, over one file or many. A context manager."""

    def __init__(self, directory: pathlib.Path, source: Source | None = None) -> None:
        """Open and check all files of `directory`, or those that a `source` tells of; StartError when there
        are none, or one is corrupt or not the one that was meant."""
        self.directory = directory
        self.title = str(directory) if source is None else source.title
        self._finite = source is not None and source.finite
        self._held = {} if source is None else {file.name: file for file in source.files}
        self._files: list[SafetensorsFile] = []
        self._home: dict[str, SafetensorsFile] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if self._path(SINGLE).is_file():
            self._add(SINGLE, None)
            return
        for name, tensors in _read_index(self.directory, self._path(INDEX)).items():
            self._add(name, tensors)

    def _path(self, name: str) -> pathlib.Path:
        return pathlib.Path(self._held[name].path) if name in self._held else self.directory / name

    def _add(self, name: str, tensors: set[str] | None) -> None:
        held = self._held.get(name)
        stamp = held.stamp if held is not None else None
        alone = len(self._held) == 1
        title = pathlib.Path(self.title) if alone else self.directory / name
        file = SafetensorsFile(self._path(name), stamp, title=title)
        self._files.append(file)
        if tensors is not None and tensors - file.entries.keys():
            missing = sorted(tensors - file.entries.keys())
            raise StartError(f"{self.directory / name} lacks {_some(missing)}, which {INDEX} places there.")
        self._home.update(dict.fromkeys(file.entries if tensors is None else tensors, file))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        while self._files:
            self._files.pop().close()

    def confirm(self) -> None:
        """StartError where a file has been written to since it was opened."""
        for file in self._files:
            file.confirm()

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._home.keys()

    def entry(self, name: str) -> Entry:
        """Dtype, shape and place of a tensor."""
        return self._home[name].entries[name]

    def read(self, name: str) -> torch.Tensor:
        """A fresh CPU tensor as stored."""
        return self._home[name].read(name)

    def finite(self, name: str) -> bool:
        """See `Tensors.finite`."""
        return self._finite

    def title_of(self, name: str) -> str:
        """See `Tensors.title_of`."""
        return self.title

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating dtype that holds most of the checkpoint; None without any."""
        size: dict[torch.dtype, int] = {}
        for name in self.names:
            entry = self.entry(name)
            if entry.dtype in _FLOATS:
                size[entry.dtype] = size.get(entry.dtype, 0) + entry.end - entry.begin
        return max(size, key=lambda dtype: size[dtype]) if size else None


def _read_index(directory: pathlib.Path, path: pathlib.Path) -> dict[str, set[str]]:
    """File name -> names of its tensors, from the index at `path` of a sharded checkpoint."""
    if not path.is_file():
        raise StartError(_nothing_found(directory))
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StartError(f"cannot read {path}: {error}.") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise StartError(f"{path} holds no weight_map.")
    files: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file or "\0" in file:
            raise StartError(f"{path} names a weight file outside its directory: {file!r}.")
        files.setdefault(file, set()).add(name)
    return files


def _nothing_found(directory: pathlib.Path) -> str:
    for name in (SINGLE, INDEX):
        if (directory / name).is_symlink():
            return f"{directory / name} is a symbolic link that leads nowhere."
    if any(next(directory.glob(pattern), None) for pattern in _PICKLES):
        return (
            f"{directory} holds only pickled weights, which can run code and are never loaded: "
            "convert them to safetensors."
        )
    return f"{directory} holds no {SINGLE} and no {INDEX}."


def load_into(
    checkpoint: Tensors,
    targets: Mapping[str, torch.Tensor],
    *,
    ignored: Callable[[str], bool],
    progress: Callable[[str], None],
) -> None:
    """Copy the checkpoint into `targets`: views of the model's own tensors, by checkpoint name.

    Names for which `ignored` is true may be in the checkpoint without a target. StartError, before
    anything was written, when a tensor is missing, unexpected, of another shape or not floating.
    """
    validate(checkpoint, targets, ignored)
    fill(checkpoint, targets, progress)


def fill(checkpoint: Tensors, targets: Mapping[str, torch.Tensor], progress: Callable[[str], None]) -> None:
    """Copy what has been found to fit; a checkpoint may hold more. StartError where a number is not finite
    that has to be, as it will be computed with."""
    total = sum(target.nbytes for target in targets.values())
    done, shown = 0, -1
    on_cpu = all(target.device.type == "cpu" for target in targets.values())
    names = [name for name in checkpoint.names if name in targets]
    for name, tensor in read_ahead(checkpoint, names, 0 if on_cpu else _READERS):
        targets[name].copy_(tensor)
        if checkpoint.finite(name) and not targets[name].isfinite().all():
            raise StartError(
                f"tensor {name!r} holds numbers that are infinite or NaN in {targets[name].dtype}, and nobody"
                " has allowed that (allow_nonfinite)."
            )
        done += targets[name].nbytes
        if done * 10 // total > shown:
            shown = done * 10 // total
            progress(f"loading weights: {shown * 10} %")


def read_ahead(checkpoint: Tensors, names: Iterable[str], readers: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of these names, in their order; `readers` of them are read at a time, 0: here, one by
    one."""
    if readers == 0:
        yield from ((name, checkpoint.read(name)) for name in names)
        return
    coming: collections.deque[tuple[str, Future[torch.Tensor]]] = collections.deque()
    with ThreadPoolExecutor(readers) as threads:
        for name in names:
            coming.append((name, threads.submit(checkpoint.read, name)))
            if len(coming) == readers:
                first, future = coming.popleft()
                yield first, future.result()
        for first, future in coming:
            yield first, future.result()


def validate(
    checkpoint: Tensors, targets: Mapping[str, torch.Tensor], ignored: Callable[[str], bool]
) -> None:
    """StartError when a tensor is missing, unexpected, of another shape or not floating."""
    names = set(checkpoint.names)
    if missing := sorted(targets.keys() - names):
        raise StartError(f"the weights in {checkpoint.title} lack {_some(missing)}.")
    if unexpected := sorted(name for name in names - targets.keys() if not ignored(name)):
        title = checkpoint.title_of(unexpected[0])
        raise StartError(
            f"the weights in {title} hold {_some(unexpected)}, which the model of config.json does not have."
        )
    for name, target in targets.items():
        entry = checkpoint.entry(name)
        if entry.shape != tuple(target.shape):
            raise StartError(
                f"tensor {name!r} has the shape {list(entry.shape)}, "
                f"but config.json asks for {list(target.shape)}."
            )
        if entry.dtype not in _FLOATS:
            raise StartError(
                f"tensor {name!r} has the dtype {entry.dtype}: quantised weights are unsupported."
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
