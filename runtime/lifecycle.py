"""The life of a company: start in stages, replace the dead, stop in reverse. No I/O, no clock.

`Lifecycle.turn(event, now)` takes what happened and returns what to do. Nothing is spawned before the
previous incarnation was reaped: that is the fence which lets the next incarnation write the same
shared-memory words. A cohort is the set of actors that one death restarts together; none of it starts
before all of it is down.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from typing import assert_never

from runtime import notices
from runtime.events import (
    Command,
    Died,
    End,
    Event,
    Hangs,
    IsReady,
    Kill,
    Replace,
    Say,
    Spawn,
    Stop,
    Terminate,
    Tick,
)
from runtime.phases import ALIVE, ActorState, Phase
from runtime.restart import GiveUp, Restart, Restarts
from runtime.tree import Group, leaves

REAP_SECONDS = 10.0
"""How long the end of the company waits for processes that do not die of SIGKILL (kernel sleep)."""
FAILED_STOP_SECONDS = 5.0
"""Time to end for everybody when the company has failed: nobody can be served any more."""


class Act(enum.Enum):
    """Where the company is in its life."""

    STARTING = "starting"
    SERVING = "ready"
    STOPPING = "stopping"
    FAILING = "failing"
    KILLING = "killing"
    ENDED = "ended"


class Lifecycle:
    """The company's state; `turn` is its only way to change."""

    def __init__(self, root: Group, drain_seconds: float) -> None:
        self.act = Act.STARTING
        self._restarts = Restarts(root)
        self._actors = {child.name: ActorState(child) for child in leaves(root)}
        self._drain = drain_seconds
        self._stages = sorted({child.stage for child in leaves(root)})
        self._stage = -1
        self._code = 0
        self._begun = 0.0
        self._deadline = math.inf
        self._out: list[Command] = []

    def phase(self, name: str) -> Phase:
        """Where actor `name` is."""
        return self._actors[name].phase

    def incarnation(self, name: str) -> int:
        """Number of the latest incarnation of actor `name`, 0 before its first start."""
        return self._actors[name].incarnation

    def deadline(self) -> float:
        """When the next Tick is needed at the latest."""
        times = [self._deadline]
        for actor in self._actors.values():
            times.append(actor.deadline)
            if actor.due is not None and self._cohort_is_down(actor):
                times.append(actor.due)
        return min(times)

    def begin(self, now: float) -> list[Command]:
        """Start the first stage."""
        self._begun = now
        self._next_stage(now)
        return self._taken()

    def turn(self, event: Event, now: float) -> list[Command]:
        """Take in one event at time `now` (seconds) and return what to do, in order."""
        match event:
            case IsReady(name):
                self._ready(self._actors[name], now)
            case Died():
                self._died(event, now)
            case Hangs(name, reason):
                self._fence(self._actors[name], reason)
            case Replace(name, gently):
                self._replace(self._actors[name], gently, now)
            case Stop(reason, code):
                self._stop(reason, code, now)
            case Tick():
                self._expire(now)
            case _:
                assert_never(event)
        self._spawn_due(now)
        return self._taken()

    def _taken(self) -> list[Command]:
        out, self._out = self._out, []
        return out

    def _say(self, notice: notices.Notice) -> None:
        self._out.append(Say(notice))

    def _at(self, stage: int) -> list[ActorState]:
        return [actor for actor in self._actors.values() if actor.child.stage == stage]

    # Starting.

    def _next_stage(self, now: float) -> None:
        self._stage += 1
        if self._stage == len(self._stages):
            self.act = Act.SERVING
            self._stage -= 1
            self._say(notices.Serving(now - self._begun))
            return
        for actor in self._at(self._stages[self._stage]):
            self._spawn(actor, now)

    def _spawn(self, actor: ActorState, now: float) -> None:
        actor.incarnation += 1
        actor.started = now
        actor.due, actor.cohort = None, frozenset()
        actor.excused, actor.fault, actor.late = False, "", False
        actor.move(Phase.STARTING, now + actor.child.ready_seconds)
        self._say(notices.Starting(actor.child.name, actor.incarnation))
        self._out.append(Spawn(actor.child.name, actor.incarnation))

    def _ready(self, actor: ActorState, now: float) -> None:
        if actor.phase is not Phase.STARTING:
            return
        actor.move(Phase.READY)
        actor.was_ready = True
        self._say(notices.Ready(actor.child.name, actor.incarnation, now - actor.started))
        begun = self._stages[: self._stage + 1]
        waiting = [a for stage in begun for a in self._at(stage) if a.phase is not Phase.READY]
        if self.act is Act.STARTING and not waiting:
            self._next_stage(now)

    # Dying.

    def _died(self, event: Died, now: float) -> None:
        actor = self._actors[event.name]
        reason = actor.fault or event.reason
        actor.move(Phase.DOWN)
        if self._closing(actor):
            self._go_on_stopping(now)
        elif actor.due is not None:
            actor.move(Phase.DUE)
        elif self.act is Act.STARTING and not actor.was_ready and (event.itself or actor.late):
            self._fail(event.refusal or f"{event.name} could not start: it {reason}.", now, event.exit_code)
        else:
            self._decide(actor, reason, event.progress or actor.excused, now)

    def _decide(self, actor: ActorState, reason: str, progress: bool, now: float) -> None:
        match self._restarts.died(actor.child.name, now, progress=progress):
            case Restart(names, delay):
                self._say(notices.Lost(actor.child.name, reason, delay))
                self._schedule(names, now + delay)
            case GiveUp(sentence):
                self._fail(f"{sentence}; the last time it {reason}.", now)

    def _schedule(self, names: Iterable[str], due: float) -> None:
        """Restart `names` together, at `due` or when the last of them was to restart anyway.

        A cohort that overlaps with `names` lies within them: groups are nested, and in one group the rest
        after an earlier member holds the rest after a later one.
        """
        actors = [self._actors[name] for name in names if self._replaceable(self._actors[name])]
        due = max([due, *(actor.due for actor in actors if actor.due is not None)])
        for actor in actors:
            actor.due, actor.cohort = due, frozenset(each.child.name for each in actors)
            if actor.phase is Phase.DOWN:
                actor.move(Phase.DUE)
            self._kill(actor)

    def _replaceable(self, actor: ActorState) -> bool:
        return actor.child.stage <= self._stages[self._stage] and not self._closing(actor)

    def _spawn_due(self, now: float) -> None:
        for actor in self._actors.values():
            if actor.due is not None and actor.due <= now and self._cohort_is_down(actor):
                self._spawn(actor, now)

    def _cohort_is_down(self, actor: ActorState) -> bool:
        """Whether a DUE actor may start: no actor of its cohort is still being killed."""
        cohort = (self._actors[name] for name in actor.cohort)
        return actor.phase is Phase.DUE and not any(each.phase is Phase.DOOMED for each in cohort)

    def _fence(self, actor: ActorState, reason: str) -> None:
        if actor.phase in ALIVE and actor.phase is not Phase.DOOMED:
            actor.fault = f"{reason}, so it was killed"
            self._kill(actor)

    def _kill(self, actor: ActorState) -> None:
        if actor.phase in ALIVE and actor.phase is not Phase.DOOMED:
            actor.move(Phase.DOOMED)
            self._out.append(Kill(actor.child.name))

    def _replace(self, actor: ActorState, gently: bool, now: float) -> None:
        actor.excused = True
        if gently and actor.phase is Phase.READY:
            actor.fault = "was asked to restart"
            self._terminate(actor, now)
        else:
            actor.fault = "was killed on request"
            self._kill(actor)

    # Stopping.

    def _closing(self, actor: ActorState) -> bool:
        """Whether the actor will not be replaced, because the company stops."""
        match self.act:
            case Act.STARTING | Act.SERVING:
                return False
            case Act.STOPPING:
                return actor.child.stage >= self._stages[self._stage]
            case Act.FAILING | Act.KILLING | Act.ENDED:
                return True
            case _:
                assert_never(self.act)

    def _stop(self, reason: str, code: int, now: float) -> None:
        if self.act in {Act.STARTING, Act.SERVING}:
            self.act = Act.STOPPING
            self._say(notices.Stopping(reason))
            self._stage += 1
            self._close_stage(now)
        elif self.act in {Act.STOPPING, Act.FAILING}:
            self._code = self._code or code
            self._kill_all(now)

    def _close_stage(self, now: float) -> None:
        """Stop the next lower stage that has an actor to stop; end where there is none."""
        while self._stage > 0:
            self._stage -= 1
            actors = self._at(self._stages[self._stage])
            self._dismiss(actors, now)
            if any(actor.phase in ALIVE for actor in actors):
                return
        self._end()

    def _dismiss(self, actors: Iterable[ActorState], now: float) -> None:
        for actor in actors:
            match actor.phase:
                case Phase.DUE:
                    self._forget(actor)
                case Phase.READY:
                    self._terminate(actor, now)
                case Phase.STARTING:
                    self._kill(actor)
                case Phase.DOWN | Phase.LEAVING | Phase.DOOMED:
                    pass
                case _:
                    assert_never(actor.phase)

    def _forget(self, actor: ActorState) -> None:
        actor.move(Phase.DOWN)
        actor.due, actor.cohort = None, frozenset()

    def _terminate(self, actor: ActorState, now: float) -> None:
        patience = self._drain + 1.0 if actor.child.listens else actor.child.stop_seconds
        if self.act is Act.FAILING:
            patience = min(patience, FAILED_STOP_SECONDS)
        actor.move(Phase.LEAVING, now + patience)
        self._out.append(Terminate(actor.child.name))

    def _go_on_stopping(self, now: float) -> None:
        if self.act is Act.STOPPING:
            stage = self._at(self._stages[self._stage])
            if not any(actor.phase in ALIVE for actor in stage):
                self._close_stage(now)
        elif not any(actor.phase in ALIVE for actor in self._actors.values()):
            self._end()

    def _fail(self, sentence: str, now: float, code: int = 1) -> None:
        self._say(notices.Failed(sentence))
        self.act, self._code = Act.FAILING, code
        self._dismiss(self._actors.values(), now)
        for actor in self._actors.values():
            if actor.phase is Phase.LEAVING:
                actor.deadline = min(actor.deadline, now + FAILED_STOP_SECONDS)
        self._go_on_stopping(now)

    def _kill_all(self, now: float) -> None:
        self.act = Act.KILLING
        self._deadline = now + REAP_SECONDS
        for actor in self._actors.values():
            if actor.phase is Phase.DUE:
                self._forget(actor)
            self._kill(actor)
        self._go_on_stopping(now)

    def _end(self) -> None:
        self.act = Act.ENDED
        self._deadline = math.inf
        self._out.append(End(self._code))

    # Time.

    def _expire(self, now: float) -> None:
        for actor in self._actors.values():
            if actor.deadline <= now:
                self._too_late(actor)
        if self._deadline <= now and self.act is not Act.ENDED:
            self._end()

    def _too_late(self, actor: ActorState) -> None:
        match actor.phase:
            case Phase.STARTING:
                actor.late = True
                self._fence(actor, f"was not ready after {actor.child.ready_seconds:g} s")
            case Phase.LEAVING:
                actor.fault = actor.fault or "did not end in time, so it was killed"
                self._kill(actor)
            case _:
                raise AssertionError(f"{actor.child.name} has a deadline in {actor.phase}")
