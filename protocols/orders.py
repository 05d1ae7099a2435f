"""What the supervisor may order an actor to do, what the actor answers, and what every actor is born knowing.

An order changes how an actor works, never what a request means. It travels on a line of its own
(`runtime.orders`) and never on the path of a token. An order that carries out part of the `Standing` is
idempotent: whoever already works that way answers as if it had just begun to.
"""

from __future__ import annotations

import enum

import msgspec

from protocols import weights as changes
from protocols.adapters import Adapter
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
    adapters: those that are loaded; loads: how many ever were.
    """

    number: int = 0
    paused: PauseMode | None = None
    weights: Weights = ORIGINAL
    before: Weights | None = None
    labels: dict[int, str] = msgspec.field(default_factory=lambda: {ORIGINAL.serial: ORIGINAL.version})
    adapters: tuple[Adapter, ...] = ()
    loads: int = 0


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


class ReadAdapter(msgspec.Struct, frozen=True, tag="read_adapter"):
    """Executor: read an adapter and see whether it fits the model; keep it for the next SetAdapters.
    Answered by AdapterRead."""

    adapter: Adapter


class SetAdapters(msgspec.Struct, frozen=True, tag="set_adapters"):
    """Executor, scheduler, frontend: these adapters are loaded from now on, and no others. Answered by
    Done."""

    adapters: tuple[Adapter, ...]


class CountUsers(msgspec.Struct, frozen=True, tag="count_users"):
    """Scheduler: how many requests go through each of these adapters, by id? Answered by Users."""

    adapters: tuple[int, ...]


Order = Pause | Continue | Flush | Renew | Know | ReadAdapter | SetAdapters | CountUsers | changes.Order


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


class AdapterRead(msgspec.Struct, frozen=True, tag="adapter_read"):
    """It fits. digest: of its files."""

    digest: str


class Users(msgspec.Struct, frozen=True, tag="users"):
    """In the order in which it was asked."""

    counts: tuple[int, ...]


Answer = Done | Refused | Paused | Flushed | AdapterRead | Users | changes.Answer


# The line's frames.


class Numbered(msgspec.Struct, frozen=True, array_like=True):
    """An order on its way to an actor. number: unique on its line."""

    number: int
    order: Order


class Answered(msgspec.Struct, frozen=True, array_like=True):
    """The answer to the order of the same number."""

    number: int
    answer: Answer
