"""Which weights serve: checkpoints laid over the model's own directory, and how often they have changed."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

MADE_BITS = 32

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""What a checkpoint's only file is called, and the list of several."""

OWN = 0
"""Number of the model's own directory, as a source."""


class Mode(enum.StrEnum):
    """What happens to the running requests. KEEP: they continue with the tokens they have, under the new
    weights. WAIT: they finish first. ABORT: they end at once, with the tokens they have."""

    KEEP = "keep"
    WAIT = "wait"
    ABORT = "abort"


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
    title: what people know it by. finite: whether it is refused where a number in it is infinite or NaN."""

    number: int
    title: str
    files: tuple[File, ...]
    finite: bool = False


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


class Found(msgspec.Struct, frozen=True, array_like=True):
    """What a change would bring. changed: tensors that are read anew; size: their bytes; used: numbers of the
    sources of which anything is left."""

    changed: tuple[str, ...]
    size: int
    used: tuple[int, ...]


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


class Made(msgspec.Struct, frozen=True, array_like=True):
    """Which weights made the tokens of an answer: bit i of `bits` stands for the serial first + i, the last
    one for all from there on."""

    first: int = 0
    bits: int = 0

    def also(self, serial: int) -> Made:
        """The same, with the weights of `serial`, which is not below any of them."""
        if not self.bits:
            return Made(serial, 1)
        return Made(self.first, self.bits | 1 << min(serial - self.first, MADE_BITS - 1))

    def labels(self, known: Mapping[int, str]) -> tuple[str, ...]:
        """What people call them, in order; the serial where nobody remembers."""
        serials = (self.first + i for i in range(self.bits.bit_length()) if self.bits >> i & 1)
        return tuple(dict.fromkeys(known.get(serial, str(serial)) for serial in serials))


NOBODY = Made()
"""That of an answer that has not begun."""


# What the supervisor orders an executor to do, in the order of a change, and what it is answered.


class Examine(msgspec.Struct, frozen=True, tag="examine"):
    """Say what a change to these weights would mean, without doing anything. Answered by Staged."""

    weights: Weights


class Stage(msgspec.Struct, frozen=True, tag="stage"):
    """Make these weights ready beside those that serve. Answered by Staged, once they are whole and fit."""

    weights: Weights


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """The change is decided: the weights of this serial serve from now on. Answered by Done."""

    serial: int


class Discard(msgspec.Struct, frozen=True, tag="discard"):
    """The change does not take place: forget what is ready. Answered by Done."""


class Join(msgspec.Struct, frozen=True, tag="join"):
    """Meet a trainer, for so many seconds at most. Answered by Done."""

    group: Group
    seconds: float


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Leave a group. Answered by Done, refused where there is none."""

    name: str


class Receive(msgspec.Struct, frozen=True, tag="receive"):
    """Take these tensors from a group, each within `seconds`; a file of them goes to `path`, "" for nowhere.
    Answered by Done."""

    group: str
    tensors: tuple[Shape, ...]
    path: str
    seconds: float


class Peek(msgspec.Struct, frozen=True, tag="peek"):
    """Return the first `count` numbers of a tensor. Answered by Peeked."""

    name: str
    count: int


class Survey(msgspec.Struct, frozen=True, tag="survey"):
    """Read all tensors that serve, and return their checksums. Answered by Surveyed."""


Order = Examine | Stage | Commit | Discard | Join | Leave | Receive | Peek | Survey


class Staged(msgspec.Struct, frozen=True, tag="staged"):
    """checksum: of all tensors, "" where nothing was made ready; dtype: what is computed in."""

    found: Found
    checksum: str
    dtype: str


class Peeked(msgspec.Struct, frozen=True, tag="peeked"):
    """A tensor that serves, and its first numbers."""

    dtype: str
    shape: tuple[int, ...]
    numbers: tuple[float, ...]


class Surveyed(msgspec.Struct, frozen=True, tag="surveyed"):
    """Which weights serve, their checksum, and those of the tensors as they lie in memory."""

    serial: int
    checksum: str
    tensors: dict[str, str]


Answer = Staged | Peeked | Surveyed
