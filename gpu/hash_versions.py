"""The weights of a hash executor: files of any bytes, of which the CRC-32 of the latest ones is all that
counts."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence

from protocols.errors import StartError, VerbError
from protocols.weights import File, Found, Group, Shape, Source, Weights


class NoGroups:
    """As `gpu.receiving.Groups`: without torch nobody can be met."""

    def join(self, group: Group, seconds: float) -> None:
        """See `Groups.join`."""
        raise StartError("the hash executor takes part in no group.")

    def leave(self, name: str) -> bool:
        """There is none."""
        return False

    def receive(
        self,
        name: str,
        shapes: Sequence[Shape],
        path: str,
        seconds: float,
        progress: Callable[[str], None],
    ) -> None:
        """See `Groups.receive`."""
        raise VerbError("not_found", f"this executor is in no group {name!r}.")


class HashVersions:
    """As `gpu.versions.Versions`. number: of the weights that serve."""

    def __init__(self, weights: Weights) -> None:
        self.live, self.number = weights, _number(weights)
        self.groups = NoGroups()
        self._staged: tuple[Weights, int] | None = None

    def examine(self, weights: Weights) -> Found:
        """See `Versions.examine`."""
        return Found(("hash",) if _number(weights) != self.number else (), 8, _used(weights))

    def stage(self, weights: Weights, progress: Callable[[str], None]) -> Found:
        """See `Versions.stage`."""
        self.discard()
        found = self.examine(weights)
        self._staged = weights, _number(weights)
        return found

    def commit(self, serial: int) -> bool:
        """What has been made ready serves from now on, if it is of this serial; whether it does."""
        if self._staged is not None and self._staged[0].serial == serial:
            (self.live, self.number), self._staged = self._staged, None
        return self.live.serial == serial

    def discard(self) -> None:
        """Forget what has been made ready."""
        self._staged = None

    @property
    def serial(self) -> int:
        """See `Versions.serial`."""
        return self.live.serial

    @property
    def dtype(self) -> str:
        """Nothing is computed with."""
        return ""

    def checksums(self, *, staged: bool = False) -> Iterator[tuple[str, str]]:
        """See `Versions.checksums`."""
        yield "hash", f"{self._staged[1] if staged and self._staged else self.number:08x}"

    def checksum(self, *, staged: bool = False) -> str:
        """See `Versions.checksum`."""
        return next(value for _, value in self.checksums(staged=staged))

    def peek(self, name: str, count: int) -> tuple[str, tuple[int, ...], list[float]]:
        """See `Versions.peek`."""
        if name != "hash":
            raise KeyError(name)
        return "uint32", (1,), [float(self.number)][:count]


def _number(weights: Weights) -> int:
    number = 0
    for source in weights.sources[-1:]:
        for file in source.files:
            number = zlib.crc32(_content(source, file), number)
    return number


def _content(source: Source, file: File) -> bytes:
    """Raises StartError."""
    try:
        with open(file.path, "rb") as opened:
            status = os.fstat(opened.fileno())
            if (status.st_size, status.st_mtime_ns) != file.stamp:
                raise StartError(f"{source.title} has been written to since it was chosen.")
            return opened.read()
    except OSError as error:
        raise StartError(f"cannot read the weights {source.title}: {error.strerror}.") from error


def _used(weights: Weights) -> tuple[int, ...]:
    return tuple(source.number for source in weights.sources[-1:])
