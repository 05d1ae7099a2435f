"""What the supervisor may order an actor to do, what the actor answers, and what every actor is born knowing.

An order changes how an actor works, never what a request means. It travels on a line of its own
(`runtime.orders`) and never on the path of a token. An order that carries out part of the `Standing` is
idempotent: whoever already works that way answers as if it had just begun to.
"""

from __future__ import annotations

import enum

import msgspec

from protocols import weights as changes
from protocols.weights import ORIGINAL, Weights


class PauseMode(enum.StrEnum):
    """What becomes of the requests that run when generation pauses. New ones wait in every mode.

    ABORT: all end, with the tokens they have. RETRACT: their KV goes to the prefix cache, and they wait,
    to be prefilled again. IN_PLACE: they stop where they are and keep their KV. WAIT: they run to their ends.
    """

    ABORT = "abort"
    RETRACT = "retract"
    IN_PLACE = "in_place"
    WAIT = "wait"


class Standing(msgspec.Struct, frozen=True):
    """What holds for every incarnation of every actor from its start on. Only the supervisor changes it.

    number: counts the changes. paused: how generation was paused, None while it runs. weights: those that
    serve; before: those that did, for a rollback; labels: what the latest are called, by their serial.
    """

    number: int = 0
    paused: PauseMode | None = None
    weights: Weights = ORIGINAL
    before: Weights | None = None
    labels: dict[int, str] = msgspec.field(default_factory=lambda: {ORIGINAL.serial: ORIGINAL.version})


# Orders.


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Scheduler: launch no more steps. Answered by Paused once none is in the air."""

    mode: PauseMode


class Continue(msgspec.Struct, frozen=True, tag="continue"):
    """Scheduler: generate again. Answered by Done."""


class Flush(msgspec.Struct, frozen=True, tag="flush"):
    """Scheduler: forget every cached prefix that no running request uses. Answered by Flushed."""


class Renew(msgspec.Struct, frozen=True, tag="renew"):
    """Scheduler, while it is paused: other weights serve from now on. Every sequence and every cached
    prefix has its KV computed anew. Answered by Flushed."""

    serial: int


class Know(msgspec.Struct, frozen=True, tag="know"):
    """Tokenizer: what weights are called. Answered by Done."""

    labels: dict[int, str]


Order = Pause | Continue | Flush | Renew | Know | changes.Order


# Answers.


class Done(msgspec.Struct, frozen=True, tag="done"):
    """It is so."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """It is not, for a reason; as `protocols.errors.VerbError`, which it becomes at the supervisor."""

    code: str
    sentence: str


class Paused(msgspec.Struct, frozen=True, tag="paused"):
    """No step is in the air, and none follows (mode WAIT: none but those of the running requests).
    running: requests that hold a slot; waiting: others."""

    running: int
    waiting: int


class Flushed(msgspec.Struct, frozen=True, tag="flushed"):
    """pages: given back; kept: still cached, because running requests use them."""

    pages: int
    kept: int


Answer = Done | Refused | Paused | Flushed | changes.Answer


# The line's frames.


class Numbered(msgspec.Struct, frozen=True, array_like=True):
    """An order on its way to an actor. number: unique on its line."""

    number: int
    order: Order


class Answered(msgspec.Struct, frozen=True, array_like=True):
    """The answer to the order of the same number."""

    number: int
    answer: Answer
