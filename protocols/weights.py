"""Which weights serve: checkpoints laid over the model's own directory, and how often they have changed."""

from __future__ import annotations

import msgspec


class File(msgspec.Struct, frozen=True, array_like=True):
    """A file of a checkpoint.

    name: within its directory. path: where an actor opens it: what the supervisor holds open, so that
    neither its deletion nor another file under its name matters. stamp: its size and when it was last
    written (ns); a file with another stamp is not the one that was meant.
    """

    name: str
    path: str
    stamp: tuple[int, int]


class Source(msgspec.Struct, frozen=True, array_like=True):
    """One checkpoint, of all tensors of a model or of some. number: no other source of a company has it.
    title: what people know it by."""

    number: int
    title: str
    files: tuple[File, ...]


class Weights(msgspec.Struct, frozen=True):
    """What the executors compute with.

    serial: counts the changes, from 1. version: what people call them. sources: each covers those before it,
    and all of them the model's own directory. checksum: of every tensor as it lies in memory, and dtype: what
    is computed in; "" where nobody has looked.
    """

    serial: int = 1
    version: str = "default"
    sources: tuple[Source, ...] = ()
    checksum: str = ""
    dtype: str = ""


ORIGINAL = Weights()
"""Those of the model's own directory."""


class Shape(msgspec.Struct, frozen=True, array_like=True):
    """A tensor that is to come: dtype as torch names it ("bfloat16")."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Group(msgspec.Struct, frozen=True, array_like=True):
    """A group of processes that exchange tensors; its first rank, a trainer's, sends. rank: of who is
    told."""

    name: str
    address: str
    port: int
    rank: int
    size: int
    backend: str


def versions(first: int, made: int, labels: dict[int, str]) -> tuple[str, ...]:
    """The labels of the weights that made an answer, in order, as the ledger notes them: bit i of `made`
    stands for the serial first + i."""
    serials = (first + i for i in range(made.bit_length()) if made >> i & 1)
    return tuple(dict.fromkeys(labels.get(serial, str(serial)) for serial in serials))
