"""Which replica gets the next request: the balancer's decisions, without I/O.

Each scheduler shows on the board what it holds and the number of the last dispatch that this counts. What the
balancer has sent since then is still on its way and known to nobody but the balancer, so

    load of a replica  =  what its row says  +  what was dispatched to it after its LAST_DISPATCH

is exact at every moment, without a lock and without asking.
"""

from __future__ import annotations

import dataclasses
from collections import deque

import numpy as np
import numpy.typing as npt

from protocols.config import Balance

Ints = npt.NDArray[np.int64]

_NONE = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True, slots=True)
class Loads:
    """What the board says of each replica. ready: whether it can begin work now. requests: running and
    waiting. tokens: Column.TOKENS_HELD. last_dispatch: Column.LAST_DISPATCH."""

    ready: npt.NDArray[np.bool_]
    requests: Ints
    tokens: Ints
    last_dispatch: Ints


class Balancer:
    """Chooses among `replicas` replicas, and remembers what is on its way to each."""

    def __init__(self, replicas: int, policy: Balance) -> None:
        self._policy = policy
        self._next = np.ones(replicas, np.int64)
        self._flying: list[deque[tuple[int, int]]] = [deque() for _ in range(replicas)]
        self._oldest = np.full(replicas, _NONE)
        self._flying_tokens = np.zeros(replicas, np.int64)
        self._flying_requests = np.zeros(replicas, np.int64)
        self._turn = 0

    def choose(self, loads: Loads, tokens: int) -> tuple[int, int]:
        """Replica for a request of `tokens` prompt tokens, and the number of this dispatch to it.

        Replicas that are not ready are passed over, unless none is: then the mail waits for one.
        """
        self._landed(loads.last_dispatch)
        scores = self._scores(loads)
        able = loads.ready if loads.ready.any() else np.ones_like(loads.ready)
        candidates = np.flatnonzero(able & (scores == scores[able].min()))
        after = np.searchsorted(candidates, self._turn)
        replica = int(candidates[after % len(candidates)])
        self._turn = (replica + 1) % len(scores)
        number = max(int(self._next[replica]), int(loads.last_dispatch[replica]) + 1)
        self.record(replica, number, tokens)
        return replica, number

    def record(self, replica: int, number: int, tokens: int) -> None:
        """Dispatch `number` is on its way to `replica`; numbers of one replica are told in order."""
        self._flying[replica].append((number, tokens))
        self._oldest[replica] = self._flying[replica][0][0]
        self._flying_tokens[replica] += tokens
        self._flying_requests[replica] += 1
        self._next[replica] = number + 1

    def _landed(self, last_dispatch: Ints) -> None:
        """Forget what the schedulers count themselves by now."""
        for replica in np.flatnonzero(self._oldest <= last_dispatch).tolist():
            flying = self._flying[replica]
            while flying and flying[0][0] <= last_dispatch[replica]:
                self._flying_tokens[replica] -= flying.popleft()[1]
                self._flying_requests[replica] -= 1
            self._oldest[replica] = flying[0][0] if flying else _NONE

    def _scores(self, loads: Loads) -> Ints:
        """The lowest score wins; among equals the next one in turn."""
        match self._policy:
            case Balance.ROUND_ROBIN:
                return np.zeros_like(loads.tokens)
            case Balance.SHORTEST_QUEUE:
                return loads.requests + self._flying_requests
            case Balance.MINIMUM_TOKENS:
                return loads.tokens + self._flying_tokens
