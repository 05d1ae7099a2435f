"""What every actor is born knowing: how the company is to work now, whichever actors die.

Only the supervisor changes it. Actors that run are ordered accordingly (`protocols.orders`); those that start
later need no order.
"""

from __future__ import annotations

import enum

import msgspec

from protocols.adapters import Adapter
from protocols.config import Policy
from protocols.weights import ORIGINAL, Weights


class PauseMode(enum.StrEnum):
    """What happens to the running requests when generation pauses. New ones wait in every mode.

    ABORT: all end, with the tokens they have. RETRACT: their KV goes to the prefix cache, and they wait,
    to be prefilled again. IN_PLACE: they stop where they are and keep their KV. WAIT: they run to their ends.
    """

    ABORT = "abort"
    RETRACT = "retract"
    IN_PLACE = "in_place"
    WAIT = "wait"


class Memory(enum.StrEnum):
    """What of an executor's memory can be given back to the system."""

    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"
    CUDA_GRAPH = "cuda_graph"


class Settings(msgspec.Struct, frozen=True):
    """What may change while a company serves; None: as the company was started.

    policy: order of admission. speculate_tokens, speculate_rows: see `protocols.config.Config`; they mean
    something where the company speculates. step_delay: seconds that an executor waits before each step.
    """

    policy: Policy | None = None
    speculate_tokens: int | None = None
    speculate_rows: int | None = None
    step_delay: float = 0.0


class Standing(msgspec.Struct, frozen=True):
    """What holds for every incarnation of every actor from its start on. Only the supervisor changes it.

    number: counts the changes. paused: how generation was paused, None while it runs. draining: no new
    request is let in. released: memory that executors have given back. settings: see there. weights: those
    that serve; before: those that did, for a rollback; labels: what the latest are called, by their serial.
    adapters: those that are loaded; loads: how many ever were. recording: while experts are counted, which
    incarnations of the executors have counted from the beginning. profiles: files that executors
    record into, by their names, until a stop has told them.
    """

    number: int = 0
    paused: PauseMode | None = None
    weights: Weights = ORIGINAL
    before: Weights | None = None
    labels: dict[int, str] = msgspec.field(default_factory=lambda: {ORIGINAL.serial: ORIGINAL.version})
    adapters: tuple[Adapter, ...] = ()
    loads: int = 0
    recording: tuple[int, ...] = ()
    draining: bool = False
    released: tuple[Memory, ...] = ()
    settings: Settings = Settings()
    profiles: dict[str, str] = {}
