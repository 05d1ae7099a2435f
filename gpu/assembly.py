"""Checkpoints laid over one another: each tensor is read where it was laid last."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Collection, Iterable

import torch

from gpu.safetensors_file import Entry
from gpu.weights import Checkpoint
from protocols.weights import OWN, Source


class Assembly:
    """`gpu.weights.Tensors` of `sources` over a model's own directory. A context manager.

    homes: number of the source of each tensor.
    """

    def __init__(self, own: Source, sources: Iterable[Source], wanted: Iterable[str] | None = None) -> None:
        """Open and check the files. own: the model's directory. wanted: names of all tensors that count,
        where they are known: what the sources have of them need not be in the directory, nor need there be
        one. StartError."""
        self.homes: dict[str, int] = {}
        self._checkpoints: dict[int, Checkpoint] = {}
        titles: list[str] = []
        with contextlib.ExitStack() as opened:
            for source in sources:
                directory_of = pathlib.Path(source.title)
                self._lay(source.number, opened.enter_context(Checkpoint(directory_of, source)))
                titles.insert(0, source.title)
            if wanted is None or not all(name in self.homes for name in wanted):
                above = self.homes
                self.homes = {}
                self._lay(OWN, opened.enter_context(Checkpoint(pathlib.Path(own.title), own)))
                self.homes |= above
                titles.append(own.title)
            self.title = ", laid over ".join(titles[:2]) + "".join(f" and {title}" for title in titles[2:])
            self._opened = opened.pop_all()

    def _lay(self, number: int, checkpoint: Checkpoint) -> None:
        self._checkpoints[number] = checkpoint
        self.homes |= dict.fromkeys(checkpoint.names, number)

    def __enter__(self) -> Assembly:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @property
    def names(self) -> Collection[str]:
        """See `Tensors.names`."""
        return self.homes.keys()

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating dtype that holds most of the model's own checkpoint, or of the first there is."""
        return next(reversed(self._checkpoints.values())).dtype

    def entry(self, name: str) -> Entry:
        """See `Tensors.entry`."""
        return self._checkpoints[self.homes[name]].entry(name)

    def read(self, name: str) -> torch.Tensor:
        """See `Tensors.read`."""
        return self._checkpoints[self.homes[name]].read(name)

    def finite(self, name: str) -> bool:
        """See `Tensors.finite`."""
        return self._checkpoints[self.homes[name]].finite(name)

    def title_of(self, name: str) -> str:
        """See `Tensors.title_of`."""
        return self._checkpoints[self.homes[name]].title

    def confirm(self) -> None:
        """StartError where a file has been written to since it was opened, or chosen."""
        for checkpoint in self._checkpoints.values():
            checkpoint.confirm()
