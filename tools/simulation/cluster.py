"""Replicas in virtual time: real cores, virtual executors, the real balancer, and a heap of events.

A turn of a scheduler takes `turn_ms` of its CPU and a message `transit_ms`; a step takes what the cost model
says, and a device runs one step after another. With depth 1 the device therefore waits for the turn, with
depth 2 it does not, as in life.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from actors.balance import Balancer, Loads
from actors.scheduler.commands import Emit, Launch, Load
from actors.scheduler.core import Core
from protocols.config import Balance, Policy
from protocols.messages import SchedulerMail, Submit, TokenRow
from protocols.oracle import continuation
from protocols.plan import ExecutorReady
from protocols.request import Finish
from tools.simulation.executor import Cost, VirtualExecutor
from tools.simulation.workload import VOCAB, Arrival


@dataclasses.dataclass(frozen=True)
class Options:
    """A cluster. pages x page_size tokens of KV and `slots` slots a replica; times in milliseconds."""

    replicas: int = 1
    depth: int = 2
    policy: Policy = Policy.FCFS
    balance: Balance = Balance.MINIMUM_TOKENS
    radix: bool = True
    pages: int = 16384
    page_size: int = 16
    slots: int = 256
    chunk_size: int = 2048
    turn_ms: float = 0.5
    transit_ms: float = 0.5
    cost: Cost = dataclasses.field(default_factory=Cost)


@dataclasses.dataclass(slots=True)
class Life:
    """A request's times in seconds: when it came, when its first token, and when its last was committed."""

    submit: Submit
    arrived: float
    first: float = -1.0
    ended: float = -1.0
    output: list[int] = dataclasses.field(default_factory=list)


class Replica:
    """A scheduler and its device. later: schedules (seconds from now, what to do then)."""

    def __init__(self, options: Options, later: Callable[[float, Callable[[], None]], None]) -> None:
        self._options = options
        self._later = later
        self._core = Core(
            depth=options.depth,
            chunk_size=options.chunk_size,
            policy=options.policy,
            radix=options.radix,
        )
        self._executor = VirtualExecutor(
            pages=options.pages,
            page_size=options.page_size,
            slots=options.slots,
            vocab=VOCAB,
            cost=options.cost,
        )
        self._device_free = 0.0
        self._busy_until = 0.0
        self._mail: list[SchedulerMail] = []
        self._scheduled = False
        self.load: Load | None = None
        self.now: Callable[[], float] = lambda: 0.0
        self.take: Callable[[TokenRow], None] = lambda row: None
        self._mail.append(ExecutorReady(1, options.pages, options.page_size, options.slots, VOCAB))

    def receive(self, message: SchedulerMail) -> None:
        """Mail has come: it is read when the turn under way is over."""
        self._mail.append(message)
        if not self._scheduled:
            self._scheduled = True
            self._later(max(0.0, self._busy_until - self.now()), self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        mail, self._mail = self._mail, []
        turn = self._options.turn_ms / 1000
        self._busy_until = self.now() + turn
        for command in self._core.turn(mail):
            match command:
                case Launch(plan):
                    done = self._executor.run(plan)
                    start = max(self._busy_until, self._device_free)
                    self._device_free = start + done.elapsed_us / 1e6
                    self._deliver(done, self._device_free - self.now())
                case Emit(_, rows):
                    for row in rows:
                        self.take(row)
                case Load():
                    self.load = command
                case _:
                    pass

    def _deliver(self, message: SchedulerMail, delay: float) -> None:
        self._later(delay, lambda: self.receive(message))


class Cluster:
    """Runs arrivals through a balancer and replicas until everything has ended."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.now = 0.0
        self.lives: dict[int, Life] = {}
        self.imbalance: list[float] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.replicas = [Replica(options, self._later) for _ in range(options.replicas)]
        self._balancer = Balancer(options.replicas, options.balance)
        for replica in self.replicas:
            replica.now = lambda: self.now
            replica.take = self._take

    def run(self, coming: Sequence[Arrival]) -> None:
        """Everything, from the first arrival to the last token. AssertionError when a token is wrong."""
        for arrival in coming:
            heapq.heappush(self._events, (arrival.at, next(self._numbers), self._arrival(arrival)))
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()
        for life in self.lives.values():
            tokens, _ = continuation(life.submit.tokens, life.submit.sampling, life.submit.choice, VOCAB)
            assert tuple(life.output) == tokens, "a wrong token"

    def _later(self, delay: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._numbers), act))

    def _arrival(self, arrival: Arrival) -> Callable[[], None]:
        def act() -> None:
            submit = arrival.submit
            self.lives[submit.rid] = Life(submit, self.now)
            loads = self._loads()
            if loads.tokens.any():
                self.imbalance.append(float(loads.tokens.max() / loads.tokens.mean()))
            replica, number = self._balancer.choose(loads, len(submit.tokens) // 4)
            numbered = msgspec.structs.replace(submit, dispatch=number)
            self._later(self.options.transit_ms / 1000, lambda: self.replicas[replica].receive(numbered))

        return act

    def _loads(self) -> Loads:
        known = [replica.load for replica in self.replicas]
        return Loads(
            ready=np.ones(len(known), np.bool_),
            requests=np.array([load.running + load.waiting if load else 0 for load in known], np.int64),
            tokens=np.array([load.tokens_held if load else 0 for load in known], np.int64),
            last_dispatch=np.array([load.last_dispatch if load else 0 for load in known], np.int64),
        )

    def _take(self, row: TokenRow) -> None:
        life = self.lives[row.rid]
        assert row.start == len(life.output), "a token is lost or doubled"
        if not life.output:
            life.first = self.now
        life.output += row.tokens
        if row.finish is not Finish.NONE:
            life.ended = self.now
