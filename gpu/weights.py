"""A model directory's weights: finding the files, checking every name, shape and dtype, then copying.

Safetensors only: a directory with nothing but pickled weights is refused. Nothing is written into
the model before all of the checkpoint has been validated against it.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping

import torch

from gpu.safetensors_file import Entry, SafetensorsFile
from protocols.errors import StartError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Checkpoint:
    """The tensors of a directory, by name, over one file or many. A context manager."""

    def __init__(self, directory: pathlib.Path) -> None:
        """Open and check all files of `directory`; StartError when it has none or one is corrupt."""
        self.directory = directory
        self._files: list[SafetensorsFile] = []
        self._home: dict[str, SafetensorsFile] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if (self.directory / SINGLE).is_file():
            self._add(self.directory / SINGLE, None)
            return
        for file, names in _read_index(self.directory).items():
            self._add(self.directory / file, names)

    def _add(self, path: pathlib.Path, names: set[str] | None) -> None:
        file = SafetensorsFile(path)
        self._files.append(file)
        if names is not None and names - file.entries.keys():
            missing = sorted(names - file.entries.keys())
            raise StartError(f"{path} lacks {_some(missing)}, which {INDEX} places there.")
        self._home.update(dict.fromkeys(file.entries if names is None else names, file))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        while self._files:
            self._files.pop().close()

    @property
    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._home.keys()

    def entry(self, name: str) -> Entry:
        """Dtype, shape and place of a tensor."""
        return self._home[name].entries[name]

    def read(self, name: str) -> torch.Tensor:
        """A fresh CPU tensor as stored."""
        return self._home[name].read(name)

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating dtype that holds most of the checkpoint; None without any."""
        size: dict[torch.dtype, int] = {}
        for name in self.names:
            entry = self.entry(name)
            if entry.dtype in _FLOATS:
                size[entry.dtype] = size.get(entry.dtype, 0) + entry.end - entry.begin
        return max(size, key=lambda dtype: size[dtype]) if size else None


def _read_index(directory: pathlib.Path) -> dict[str, set[str]]:
    """File name -> names of its tensors, from the index of a sharded checkpoint."""
    path = directory / INDEX
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
    checkpoint: Checkpoint,
    targets: Mapping[str, torch.Tensor],
    *,
    ignored: Callable[[str], bool],
    progress: Callable[[str], None],
) -> None:
    """Copy the checkpoint into `targets`: views of the model's own tensors, by checkpoint name.

    Names for which `ignored` is true may be in the checkpoint without a target. StartError, before
    anything was written, when a tensor is missing, unexpected, of another shape or not floating.
    """
    _validate(checkpoint, targets, ignored)
    total = sum(target.nbytes for target in targets.values())
    done, shown = 0, -1
    for name in checkpoint.names:
        if name not in targets:
            continue
        targets[name].copy_(checkpoint.read(name))
        done += targets[name].nbytes
        if done * 10 // total > shown:
            shown = done * 10 // total
            progress(f"loading weights: {shown * 10} %")


def _validate(
    checkpoint: Checkpoint, targets: Mapping[str, torch.Tensor], ignored: Callable[[str], bool]
) -> None:
    names = set(checkpoint.names)
    if missing := sorted(targets.keys() - names):
        raise StartError(f"the weights in {checkpoint.directory} lack {_some(missing)}.")
    if unexpected := sorted(name for name in names - targets.keys() if not ignored(name)):
        raise StartError(
            f"the weights in {checkpoint.directory} hold {_some(unexpected)}, "
            "which the model of its config.json does not have."
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
