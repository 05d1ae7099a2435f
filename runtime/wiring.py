"""Everything in shared memory that a company needs, made once, and what of it each actor inherits.

The supervisor makes every ring, doorbell, the board and the ledger before the first actor starts, and
keeps their descriptors for the company's whole life: each incarnation of an actor inherits the same
ones, under the same numbers, so unread mail and open requests outlive whoever worked on them. Nothing
has a name: when the last process is gone, so is the memory.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

import msgspec

from protocols.config import Config
from protocols.ledger import Layout
from protocols.standing import Standing
from runtime.blackbox import BlackBox
from runtime.board import Board, Row
from runtime.doorbell import Doorbell
from runtime.ledger import Ledger
from runtime.ring import Ring
from runtime.tree import Child, Company, leaves
from runtime.vault import Vault, load_keys

CONTROL_BYTES = 64 * 1024
"""Capacity of an edge's control ring."""
EXTRA_BYTES_A_TOKEN = 1024
"""Room in the ledger for one token's logprobs; sparse, so it costs nothing until it is used."""


class Edge(msgspec.Struct, frozen=True):
    """One direction between two actors: descriptors of its rings; `peer` is the other end's name,
    `doorbell` the receiver's."""

    peer: str
    control: int
    data: int
    doorbell: int


class Spec(msgspec.Struct, frozen=True, tag="spec"):
    """All that a process needs to become an actor. Integers that name a thing are descriptors; -1: none.

    row: the actor's row of the board; rows: everybody's. box: its black box. report: pipe to the supervisor;
    line: of the supervisor's orders (`runtime.orders`). standing: what it is born knowing.
    """

    name: str
    kind: str
    index: int
    entry: str
    incarnation: int
    supervisor: int
    config: Config
    inbox: tuple[Edge, ...]
    outbox: tuple[Edge, ...]
    doorbell: int
    board: int
    row: int
    rows: dict[str, int]
    ledger: int
    layout: Layout
    box: int
    report: int
    line: int = -1
    listener: int = -1
    vault: int = -1
    standing: Standing = Standing()

    def descriptors(self) -> tuple[int, ...]:
        """Every descriptor that the process inherits."""
        edges = [
            fd for edge in (*self.inbox, *self.outbox) for fd in (edge.control, edge.data, edge.doorbell)
        ]
        single = (self.doorbell, self.board, self.ledger, self.box, self.report, self.line)
        return tuple({fd for fd in (*edges, *single, self.listener, self.vault) if fd >= 0})


class Understudy(msgspec.Struct, frozen=True, tag="understudy"):
    """All that a process needs to wait for a part: it imports `modules`, then reads a Spec from the pipe
    `cue`. inherited: every descriptor that any of its parts may need; report and line: as in the Spec."""

    name: str
    supervisor: int
    config: Config
    modules: tuple[str, ...]
    inherited: tuple[int, ...]
    report: int
    line: int
    cue: int

    def descriptors(self) -> tuple[int, ...]:
        """Every descriptor that the process inherits."""
        return (*self.inherited, self.report, self.line, self.cue)


Part = Spec | Understudy


def ledger_layout(config: Config) -> Layout:
    """Sizes of the ledger: every choice may fill the context, every request its largest body, and the
    slots divide evenly among the frontends."""
    each = -(-config.max_open // config.frontends)
    return Layout(
        slots=each * config.frontends,
        tokens=config.model.context,
        request_bytes=config.max_body + 4 * config.model.context,
        extra_bytes=config.model.context * EXTRA_BYTES_A_TOKEN,
    )


class Wiring:
    """The supervisor's hold on all shared objects of a company. standing: what the next actor to start is
    born knowing."""

    def __init__(self, company: Company, listener: socket.socket | None) -> None:
        """Make everything. Raises StartError when /dev/shm has no room, or the key file is wrong."""
        keyring = load_keys(company.config)
        children = list(leaves(company.root))
        loras = company.config.loras
        self.standing = Standing(adapters=loras, loads=len(loras))
        self._config = company.config
        self._listener = listener
        self._rows = {child.name: row for row, child in enumerate(children)}
        self._rings: dict[tuple[str, str], tuple[int, int]] = {}
        self._bells: dict[str, Doorbell] = {}
        self.boxes = {child.name: BlackBox.create() for child in children}
        self._layout = ledger_layout(company.config)
        self._board = Board.create(len(children))
        self._ledger = Ledger.create(self._layout, company.config.frontends)
        self.vault = Vault.create(company.config.frontends)
        self.vault.publish(keyring)
        for child in children:
            self._bells[child.name] = Doorbell.create()
            for to in child.sends:
                self._rings[child.name, to] = (
                    _ring_descriptor(CONTROL_BYTES),
                    _ring_descriptor(company.config.ring_bytes),
                )

    def row(self, name: str) -> Row:
        """Row of actor `name` on the board."""
        return self._board.row(self._rows[name])

    def spec(self, child: Child, incarnation: int, report: int, line: int = -1) -> Spec:
        """What the next process of `child` inherits; `report` is the write end of its pipe, `line` its end of
        its line."""
        listener = self._listener.fileno() if child.listens and self._listener is not None else -1
        return Spec(
            name=child.name,
            kind=child.kind,
            index=child.index,
            entry=child.entry,
            incarnation=incarnation,
            supervisor=os.getpid(),
            config=self._config,
            inbox=tuple(self._edge(edge, peer=edge[0]) for edge in self._rings if edge[1] == child.name),
            outbox=tuple(self._edge(edge, peer=edge[1]) for edge in self._rings if edge[0] == child.name),
            doorbell=self._bells[child.name].fd,
            board=self._board.fd,
            row=self._rows[child.name],
            rows=self._rows,
            ledger=self._ledger.fd,
            layout=self._layout,
            box=self.boxes[child.name].fd,
            report=report,
            line=line,
            standing=self.standing,
            listener=listener,
            vault=self.vault.fd if child.listens else -1,
        )

    def understudy(
        self, name: str, children: Iterable[Child], report: int, line: int, cue: int
    ) -> Understudy:
        """What a process inherits that may become any of `children`."""
        specs = [self.spec(child, 0, report, line) for child in children]
        return Understudy(
            name=f"understudy.{name}",
            supervisor=os.getpid(),
            config=self._config,
            modules=tuple(sorted({spec.entry.partition(":")[0] for spec in specs})),
            inherited=tuple(sorted({fd for spec in specs for fd in spec.descriptors()} - {report, line})),
            report=report,
            line=line,
            cue=cue,
        )

    def _edge(self, edge: tuple[str, str], peer: str) -> Edge:
        control, data = self._rings[edge]
        return Edge(peer, control, data, self._bells[edge[1]].fd)

    def close(self) -> None:
        """Let go of everything; the memory is gone with the last process that maps it."""
        for pair in self._rings.values():
            for fd in pair:
                os.close(fd)
        for bell in self._bells.values():
            bell.close()
        for box in self.boxes.values():
            box.close()
        self._board.close()
        self._ledger.close()
        self.vault.close()


def _ring_descriptor(capacity: int) -> int:
    """A new ring that this process keeps but does not map."""
    ring = Ring.create(capacity)
    fd = os.dup(ring.fd)
    ring.close()
    return fd
