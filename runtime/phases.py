"""The life of one actor: the phases it moves through, and what the supervisor knows of it meanwhile.

DOWN ── spawn ──► STARTING ── ready ──► READY
 ▲                   │                    │
 │                   ├──── SIGTERM ───────┤──► LEAVING ── too late ─┐
 │                   └──── SIGKILL ───────┴──► DOOMED ◄─────────────┘
 │                                               │ reaped
 └── company stops ── DUE ◄── to be replaced ────┘        DUE ── its time, cohort down ──► STARTING
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from runtime.tree import Child


class Phase(enum.Enum):
    """Where an actor is in its life."""

    DOWN = "down"
    DUE = "due"
    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    DOOMED = "doomed"


ALIVE = {Phase.STARTING, Phase.READY, Phase.LEAVING, Phase.DOOMED}

TRANSITIONS: dict[Phase, set[Phase]] = {
    Phase.DOWN: {Phase.STARTING, Phase.DUE},
    Phase.DUE: {Phase.STARTING, Phase.DOWN},
    Phase.STARTING: {Phase.READY, Phase.DOOMED, Phase.DOWN},
    Phase.READY: {Phase.LEAVING, Phase.DOOMED, Phase.DOWN},
    Phase.LEAVING: {Phase.DOOMED, Phase.DOWN},
    Phase.DOOMED: {Phase.DOWN},
}


@dataclass
class ActorState:
    """What is known of one actor. deadline: when the phase that it is in is over at the latest. due: when its
    replacement may start, None while none was decided on. cohort: the actors that are replaced together with
    it. excused: its death will not count against a budget. fault: why it is being killed; late: that it was
    not ready in time."""

    child: Child
    phase: Phase = Phase.DOWN
    incarnation: int = 0
    started: float = 0.0
    deadline: float = math.inf
    due: float | None = None
    cohort: frozenset[str] = frozenset()
    excused: bool = False
    was_ready: bool = False
    fault: str = ""
    late: bool = False

    def move(self, phase: Phase, deadline: float = math.inf) -> None:
        """Into another phase, which is to be over by `deadline`."""
        assert phase in TRANSITIONS[self.phase], f"{self.child.name}: {self.phase} -> {phase}"
        self.phase, self.deadline = phase, deadline
