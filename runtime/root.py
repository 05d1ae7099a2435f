"""The company as administrators' verbs see it: its state, and the orders they can give.

Verbs run in the supervisor. They read the board, order actors about, and record in the `Standing` what must
also hold for those who start later. A change of several actors is decided there first, or between two rounds
of orders: whoever dies after the decision is born knowing it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import trio

from protocols.config import Config
from protocols.errors import StartError, VerbError
from protocols.orders import Answer, Order
from protocols.standing import Standing
from runtime import status
from runtime.admin import Reply
from runtime.board import Row
from runtime.events import Event, Replace, Stop
from runtime.holdings import Holdings
from runtime.incarnation import Incarnation
from runtime.lifecycle import Act, Lifecycle
from runtime.orders import Gone
from runtime.sessions import Sessions
from runtime.sight import Sight
from runtime.tree import Company, leaves
from runtime.vault import load_keys
from runtime.wiring import Wiring

ORDER_SECONDS = 60.0
"""How long an order may take, unless its verb says otherwise."""
PERSISTENCE = 3
"""Incarnations that are tried before an order that each of them dies of is given up."""

Feed = Callable[[Event], None]


class Root:
    """What verbs may ask of a running company. `running`: its living actors, kept by the supervisor. feed:
    tells the supervisor what is wished for. sight: what can be told without asking anybody. holdings:
    files that are held open for the actors. said: each actor's latest words about how far something has
    come. doubtful: trainers' groups in which tensors may lie that nobody has taken."""

    def __init__(
        self,
        company: Company,
        wiring: Wiring,
        life: Lifecycle,
        running: Mapping[str, Incarnation],
        feed: Feed,
        sight: Sight,
        log: Any,
        holdings: Holdings,
    ) -> None:
        self.sight = sight
        self.log = log
        self.holdings = holdings
        self.sessions = Sessions()
        self.said: dict[str, str] = {}
        self.doubtful: set[str] = set()
        self._company = company
        self._wiring = wiring
        self._life = life
        self._running = running
        self._feed = feed
        self._children = {child.name: child for child in leaves(company.root)}
        self._changes = trio.lowlevel.ParkingLot()
        self._under_way = ""
        self._begun = time.monotonic()

    @property
    def config(self) -> Config:
        """The company's options."""
        return self._company.config

    @property
    def standing(self) -> Standing:
        """What every actor that starts from now on is born knowing."""
        return self._wiring.standing

    def decide(self, **changes: Any) -> Standing:
        """Change the standing, which actors that start from now on are born with. Those that run must be
        ordered."""
        standing = self._wiring.standing
        self._wiring.standing = msgspec.structs.replace(standing, **changes, number=standing.number + 1)
        self.log.info("decided", number=self._wiring.standing.number, changed=sorted(changes))
        return self._wiring.standing

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Around a verb that may not overlap with another of its kind. `what`: its noun, for the refusal of
        the other."""
        if self._under_way:
            raise VerbError("conflict", f"{self._under_way} is under way: try again once it has ended.")
        self._under_way = what
        try:
            yield
        finally:
            self._under_way = ""

    def actors(self, kind: str) -> tuple[str, ...]:
        """Names of the actors of a kind."""
        return tuple(child.name for child in self._children.values() if child.kind == kind)

    def row(self, name: str) -> Row:
        """An actor's row of the board."""
        self._know(name)
        return self._wiring.row(name)

    # Orders.

    async def order(self, name: str, order: Order, timeout: float = ORDER_SECONDS) -> Answer:
        """Have the present incarnation of an actor do something. Raises VerbError where it refuses or takes
        longer than `timeout` seconds, Gone where it is down or dies meanwhile."""
        self._know(name)
        running = self._running.get(name)
        if running is None:
            raise Gone(name, "is down")
        with trio.move_on_after(timeout):
            return await running.line.order(order)
        raise VerbError("timeout", f"{name} did not answer within {timeout:g} s.")

    async def insist(self, name: str, order: Order, timeout: float = ORDER_SECONDS) -> Answer:
        """Have an actor do what the standing says: when it dies, order its successor. Raises VerbError as
        `order` does, and Gone when one incarnation after another dies."""
        with trio.move_on_after(timeout):
            for _ in range(PERSISTENCE - 1):
                await self._alive(name)
                with contextlib.suppress(Gone):
                    return await self.order(name, order, timeout)
            await self._alive(name)
            return await self.order(name, order, timeout)
        raise VerbError("timeout", f"{name} did not answer within {timeout:g} s.")

    async def insist_all(self, kind: str, order: Order, timeout: float = ORDER_SECONDS) -> dict[str, Answer]:
        """`insist` for all actors of a kind at once: their answers by name. Raises the first refusal, once
        everybody has answered."""
        answers: dict[str, Answer] = {}
        refusals: list[VerbError] = []

        async def one(name: str) -> None:
            try:
                answers[name] = await self.insist(name, order, timeout)
            except VerbError as error:
                refusals.append(error)

        async with trio.open_nursery() as nursery:
            for name in self.actors(kind):
                nursery.start_soon(one, name)
        if refusals:
            raise refusals[0]
        return answers

    async def _alive(self, name: str) -> None:
        """Wait until some incarnation of an actor runs."""
        while name not in self._running:
            if self._life.act not in {Act.STARTING, Act.SERVING}:
                raise Gone(name, "is down, and the company is ending")
            await self._changes.park()

    def changed(self) -> None:
        """Wake those who wait for an actor: one may have started, or died."""
        self._changes.unpark_all()

    # The company.

    def status(self) -> Reply:
        """The company and all its actors, from the board."""
        config = self.config
        actors = [
            status.describe_actor(child, self._life, self._wiring.row(name))
            for name, child in self._children.items()
        ]
        return {
            "state": status.company_state(self._life.act, actors),
            "name": config.name,
            "model": config.model.name,
            "url": status.url(config),
            "host": config.host,
            "port": config.port,
            "pid": os.getpid(),
            "uptime_seconds": time.monotonic() - self._begun,
            "standing": msgspec.to_builtins(self.standing),
            "actors": actors,
        }

    def tree(self) -> Reply:
        """The supervision tree with the actors' states."""
        rows = {name: self._wiring.row(name) for name in self._children}
        return {"tree": status.describe_member(self._company.root, self._life, rows)}

    def stop(self, reason: str, *, at_once: bool) -> Reply:
        """End the company: its open work first, or at once."""
        if at_once or self._life.act in {Act.STARTING, Act.SERVING}:
            self._feed(Stop(reason, 1))
        if at_once and self._life.act is Act.STOPPING:
            self._feed(Stop(reason, 1))
        return {"name": self.config.name, "state": self._life.act.value}

    def replace(self, name: str, *, gently: bool) -> Reply:
        """Replace an actor: SIGTERM first if `gently`, else SIGKILL."""
        self._know(name)
        if self._life.act not in {Act.STARTING, Act.SERVING}:
            raise VerbError("conflict", "the company is stopping: nobody is replaced any more.")
        if name not in self._running:
            raise VerbError(
                "conflict", f"{name} is {self._life.phase(name).value}: its successor is on its way."
            )
        reply = {
            "name": name,
            "pid": self._running[name].pid,
            "incarnation": self._life.incarnation(name),
        }
        self._feed(Replace(name, gently))
        return reply

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to an actor, if it runs."""
        self._know(name)
        if name in self._running:
            self._running[name].launched.process.send(number)

    def _know(self, name: str) -> None:
        if name not in self._children:
            known = ", ".join(self._children)
            raise VerbError("not_found", f"there is no actor {name!r}; there are {known}.")

    # Keys.

    def keys(self) -> Reply:
        """The API keys by name, their limits, and what each has used; never a digest."""
        _, keyring, _ = self._wiring.vault.read()
        if not keyring.needed:
            raise VerbError("conflict", "the company has no keys: start it with --keys or --api-key.")
        return {
            "keys": [
                {
                    "name": key.name,
                    "admin": key.admin,
                    **msgspec.to_builtins(key.limits),
                    **self._wiring.vault.used(key.name),
                }
                for key in keyring.keys
            ]
        }

    def reload_keys(self) -> Reply:
        """Read the key file again; where it is wrong, the keys stay as they are."""
        if not self.config.keys_file:
            raise VerbError("conflict", "the company has no key file: start it with --keys FILE.")
        try:
            self._wiring.vault.publish(load_keys(self.config))
        except StartError as error:
            raise VerbError("failed", f"{error} The keys are as they were.") from error
        return self.keys()
