"""What the supervisor may order an actor to do, and what the actor answers.

An order changes how an actor works, never what a request means. It travels on a line of its own
(`runtime.orders`) and never on the path of a token. An order that carries out part of the standing
(`protocols.standing`) is idempotent: whoever already works that way answers as if it had just begun to.
"""

from __future__ import annotations

import enum

import msgspec

from protocols import weights as changes
from protocols.adapters import Adapter
from protocols.standing import Memory, PauseMode, Settings


class Activity(enum.StrEnum):
    """Whose work a profile shows."""

    CPU = "CPU"
    GPU = "GPU"


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


class Release(msgspec.Struct, frozen=True, tag="release"):
    """Scheduler: launch nothing until Restore; refused while a step is in the air, or a request holds KV
    that would be lost. Executor: give this memory back. Answered by Held."""

    tags: tuple[Memory, ...]


class Restore(msgspec.Struct, frozen=True, tag="restore"):
    """Executor: take this memory again, weights with what they held. Scheduler: `released` is what is still
    missing, and () means go on. Answered by Held."""

    tags: tuple[Memory, ...]
    released: tuple[Memory, ...] = ()


class Adjust(msgspec.Struct, frozen=True, tag="adjust"):
    """Scheduler, executor: work with these settings. Answered by Done."""

    settings: Settings


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Frontend: refuse new requests, or let them in again. Answered by Done."""

    on: bool


class Inquire(msgspec.Struct, frozen=True, tag="inquire"):
    """Scheduler: which requests are open? Answered by Inquired."""


class EndRequests(msgspec.Struct, frozen=True, tag="end_requests"):
    """Scheduler: end these choices with the tokens they have, and tell their clients; all where there are
    none. Answered by Ended."""

    rids: tuple[int, ...] = ()


class StartProfile(msgspec.Struct, frozen=True, tag="start_profile"):
    """Executor: record what so many steps do, and then write it to a file. Refused while something is
    recorded. stacks: with the Python frames of each operation; shapes: with its tensors'. Answered by
    Done."""

    path: str
    steps: int
    activities: tuple[Activity, ...]
    stacks: bool = False
    shapes: bool = False


class StopProfile(msgspec.Struct, frozen=True, tag="stop_profile"):
    """Executor: write what it records into `path`, if that is not done, or (without `keep`) forget it.
    Answered by Profiled."""

    path: str
    keep: bool = True


class Freeze(msgspec.Struct, frozen=True, tag="freeze"):
    """Anybody: collect garbage now, and never look again at what is left. Answered by Frozen."""


class RecordExperts(msgspec.Struct, frozen=True, tag="record_experts"):
    """Executor: count the rows of each expert from now on, or no more. Answered by Done."""

    on: bool


class TakeExperts(msgspec.Struct, frozen=True, tag="take_experts"):
    """Executor: tell what was counted, and begin at 0. Answered by ExpertRows."""


class Stack(msgspec.Struct, frozen=True, tag="stack"):
    """Anybody: where is every task and thread? Answered by Stacked."""


Order = (
    Pause
    | Continue
    | Flush
    | Renew
    | Know
    | ReadAdapter
    | SetAdapters
    | CountUsers
    | Release
    | Restore
    | Adjust
    | Drain
    | Inquire
    | EndRequests
    | StartProfile
    | StopProfile
    | Freeze
    | RecordExperts
    | TakeExperts
    | Stack
    | changes.Order
)


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


class Held(msgspec.Struct, frozen=True, tag="held"):
    """Bytes by what they are for: given back, or taken again."""

    sizes: dict[str, int] = {}


class Open(msgspec.Struct, frozen=True):
    """An open choice. trace_id: of the call that asked for it, "" for none; running: whether it has a slot;
    arrived_ns: monotonic clock."""

    rid: int
    trace_id: str
    choice: int
    running: bool
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    max_tokens: int
    priority: int
    arrived_ns: int


class Inquired(msgspec.Struct, frozen=True, tag="inquired"):
    """In order of arrival."""

    requests: tuple[Open, ...]


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """Those that were open, and are no longer."""

    rids: tuple[int, ...]


class Profiled(msgspec.Struct, frozen=True, tag="profiled"):
    """So many steps, in a file of so many bytes."""

    steps: int
    bytes: int


class Frozen(msgspec.Struct, frozen=True, tag="frozen"):
    """Objects that the collector passes over from now on."""

    objects: int


class Stacked(msgspec.Struct, frozen=True, tag="stacked"):
    """As a traceback shows it."""

    text: str


class ExpertRows(msgspec.Struct, frozen=True, tag="expert_rows"):
    """By layer, for each expert."""

    layers: dict[int, tuple[int, ...]]


class AdapterRead(msgspec.Struct, frozen=True, tag="adapter_read"):
    """It fits. digest: of its files."""

    digest: str


class Users(msgspec.Struct, frozen=True, tag="users"):
    """In the order in which it was asked."""

    counts: tuple[int, ...]


Answer = (
    Done
    | Refused
    | Paused
    | Flushed
    | Held
    | Inquired
    | Ended
    | Profiled
    | Frozen
    | Stacked
    | ExpertRows
    | AdapterRead
    | Users
    | changes.Answer
)


# The line's frames.


class Numbered(msgspec.Struct, frozen=True, array_like=True):
    """An order on its way to an actor. number: unique on its line."""

    number: int
    order: Order


class Answered(msgspec.Struct, frozen=True, array_like=True):
    """The answer to the order of the same number."""

    number: int
    answer: Answer
