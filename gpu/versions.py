"""The weights of an executor: those that serve, those that have been made ready, and those before.

A change is made beside what serves: every checkpoint is found whole and fitting before anything is
allocated, then the changed tensors are laid out as they will be computed with. What serves is
exchanged for it in one assignment, between two steps, or never.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from gpu.assembly import Assembly
from gpu.models.base import Model
from gpu.occupation import discard
from gpu.receiving import Groups
from gpu.weights import validate
from protocols.errors import StartError
from protocols.free_memory import available_memory
from protocols.weights import Found, Source, Weights

SPARE = 1 << 30
"""Bytes of memory that stay free when the weights of before are kept."""
_PIECE = 1 << 24


@dataclasses.dataclass(frozen=True)
class Version:
    """A model with the weights that it has. homes: the source of each tensor (`Assembly.homes`). size: bytes
    that it shares with no version before it."""

    weights: Weights
    model: Model
    homes: Mapping[str, int]
    size: int = 0


class Versions:
    """Of one executor on `device`, whose model's own directory is `own`."""

    def __init__(self, own: Source, device: torch.device, model: Model, weights: Weights) -> None:
        self._own, self._device = own, device
        with Assembly(own, weights.sources, model.wanted().keys()) as assembly:
            homes = dict(assembly.homes)
        self.live = Version(weights, model, homes)
        self.groups = Groups(device)
        self.staged: Version | None = None
        self.kept: Version | None = None

    def examine(self, weights: Weights) -> Found:
        """What a change to `weights` would bring. StartError where it cannot be made."""
        with self._open(weights) as assembly:
            return self._found(assembly)

    @torch.inference_mode()
    def stage(self, weights: Weights, progress: Callable[[str], None]) -> Found:
        """Make a change ready beside what serves; may run in a thread of its own. StartError where it
        cannot be made: then all is as it was."""
        self.discard()
        with self._open(weights) as assembly:
            found = self._found(assembly)
            if self.kept is not None and self.kept.homes == assembly.homes:
                self.staged = dataclasses.replace(self.kept, weights=weights)
                return found
            self.kept = None
            self._afford(found.size)
            try:
                model = self.live.model.renewed(assembly, found.changed, progress)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise StartError(f"there is no memory for {_megabytes(found.size)} of weights.") from error
            assembly.confirm()
            self.staged = Version(weights, model, dict(assembly.homes), found.size)
        return found

    def commit(self, serial: int) -> Model | None:
        """What has been made ready serves from now on: its model; None where it serves already, or where
        nothing of this serial is ready (`live.weights` tells which)."""
        staged = self.staged
        if staged is None or staged.weights.serial != serial:
            return None
        self.kept, self.live, self.staged = self.live, staged, None
        if self._device.type == "cpu" and available_memory() < SPARE + 2 * staged.size:
            self.kept = None
        return self.live.model

    def release(self) -> int:
        """Empty every tensor; how many bytes that were. What is kept or ready is forgotten."""
        self.staged = self.kept = None
        tensors = {tensor.data_ptr(): tensor for _, tensor in self.live.model.parts()}
        for tensor in tensors.values():
            discard(tensor)
        return sum(tensor.nbytes for tensor in tensors.values())

    def restore(self, model: Model) -> int:
        """The same weights serve again, in a model that was read anew; how many bytes they are."""
        self.live = dataclasses.replace(self.live, model=model)
        tensors = {tensor.data_ptr(): tensor for _, tensor in model.parts()}
        return sum(tensor.nbytes for tensor in tensors.values())

    def discard(self) -> None:
        """Forget what has been made ready."""
        self.staged = None

    @property
    def serial(self) -> int:
        """Of what serves."""
        return self.live.weights.serial

    @property
    def dtype(self) -> str:
        """What is computed in, as an option names it."""
        return str(next(iter(self.live.model.wanted().values())).dtype).removeprefix("torch.")

    def checksums(self, *, staged: bool = False) -> Iterator[tuple[str, str]]:
        """CRC-32 of each tensor as it lies in memory, eight hexadecimal digits, by a name of its own; of what
        serves, or of what has been made ready."""
        version = self.staged if staged else self.live
        assert version is not None
        for name, tensor in version.model.parts():
            yield name, f"{_crc(tensor):08x}"

    def checksum(self, *, staged: bool = False) -> str:
        """Of all tensors."""
        digest = hashlib.sha256()
        for name, value in self.checksums(staged=staged):
            digest.update(f"{name} {value}\n".encode())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def peek(self, name: str, count: int) -> tuple[str, tuple[int, ...], list[float]]:
        """Dtype, shape and the first `count` numbers of a tensor that serves. KeyError where there is
        none."""
        tensor = self.live.model.read(name)
        numbers: list[float] = tensor.flatten()[:count].float().tolist()
        return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), numbers

    def _open(self, weights: Weights) -> Assembly:
        return Assembly(self._own, weights.sources, self.live.model.wanted().keys())

    def _found(self, assembly: Assembly) -> Found:
        model, live = self.live.model, self.live.homes
        wanted = model.wanted()
        validate(assembly, wanted, model.ignores)
        changed = tuple(name for name in wanted if assembly.homes[name] != live.get(name))
        size = sum(wanted[name].nbytes for name in changed)
        used = {assembly.homes[name] for name in wanted}
        return Found(changed, size, tuple(sorted(used)))

    def _afford(self, size: int) -> None:
        if self._device.type == "cpu" and (free := available_memory()) < 2 * size:
            raise StartError(
                f"{_megabytes(size)} of weights need twice as much memory while they are made ready, and "
                f"{_megabytes(free)} are free."
            )


def _crc(tensor: Tensor) -> int:
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    value = 0
    for piece in data.split(_PIECE):
        value = zlib.crc32(piece.cpu().numpy().data, value)
    return value


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
