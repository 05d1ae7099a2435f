"""The life of a company in virtual time: a world of processes that only the lifecycle's commands change."""

from __future__ import annotations

import dataclasses
import math

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime import notices
from runtime.events import (
    Command,
    Died,
    End,
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
from runtime.lifecycle import Act, Lifecycle
from runtime.phases import Phase
from runtime.tree import Budget, Child, Group, Strategy, leaves


@dataclasses.dataclass
class World:
    """Processes: who lives, and what was done to them. Dies of commands only when told to `reap`."""

    life: Lifecycle
    now: float = 0.0
    living: dict[str, int] = dataclasses.field(default_factory=dict)
    killed: list[str] = dataclasses.field(default_factory=list)
    terminated: list[str] = dataclasses.field(default_factory=list)
    told: list[notices.Notice] = dataclasses.field(default_factory=list)
    code: int | None = None

    def obey(self, commands: list[Command]) -> None:
        assert self.code is None or not commands, "nothing is done after the end"
        for command in commands:
            match command:
                case Spawn(name, incarnation):
                    assert name not in self.living, "one writer at a time"
                    self.living[name] = incarnation
                case Terminate(name):
                    assert name in self.living
                    self.terminated.append(name)
                case Kill(name):
                    assert name in self.living
                    self.killed.append(name)
                case Say(notice):
                    self.told.append(notice)
                case End(code):
                    self.code = code

    def begin(self) -> None:
        self.obey(self.life.begin(self.now))

    def ready(self, *names: str) -> None:
        for name in names:
            self.obey(self.life.turn(IsReady(name), self.now))

    def dies(self, name: str, *, progress: bool = False, itself: bool = False, refusal: str = "") -> None:
        del self.living[name]
        self.killed = [each for each in self.killed if each != name]
        self.terminated = [each for each in self.terminated if each != name]
        event = Died(name, "was killed by SIGKILL", progress, itself, refusal)
        self.obey(self.life.turn(event, self.now))

    def wait(self, seconds: float) -> None:
        """Let time pass, ticking whenever the lifecycle wants it."""
        end = self.now + seconds
        while self.life.deadline() <= end:
            self.now = max(self.now, self.life.deadline())
            self.obey(self.life.turn(Tick(), self.now))
            assert self.life.deadline() > self.now, "a tick that changes nothing would come again for ever"
        self.now = end

    def stop(self, code: int = 143) -> None:
        self.obey(self.life.turn(Stop("received SIGTERM", code), self.now))

    def failures(self) -> list[str]:
        return [notice.sentence for notice in self.told if isinstance(notice, notices.Failed)]


def _child(name: str, stage: int = 0, *, listens: bool = False) -> Child:
    return Child(name, "k", "m:f", stage=stage, listens=listens, ready_seconds=30.0, stop_seconds=2.0)


def _tree(strategy: Strategy = Strategy.ONE_FOR_ONE) -> Group:
    children = (_child("e"), _child("s", 1), _child("t", 1), _child("f", 2, listens=True))
    return Group("root", strategy, children, Budget(3, 60.0))


def _world(strategy: Strategy = Strategy.ONE_FOR_ONE, *, serving: bool = True) -> World:
    world = World(Lifecycle(_tree(strategy), drain_seconds=10.0))
    world.begin()
    if serving:
        world.ready("e", "s", "t", "f")
        assert world.life.act is Act.SERVING
    return world


def test_stages_start_one_after_the_other() -> None:
    world = _world(serving=False)
    assert list(world.living) == ["e"]
    world.ready("e")
    assert list(world.living) == ["e", "s", "t"]
    world.ready("t")
    assert "f" not in world.living
    world.ready("s")
    world.now = 3.5
    world.ready("f")
    assert world.told[-1] == notices.Serving(3.5)


def test_they_stop_in_reverse() -> None:
    world = _world()
    world.stop()
    assert world.terminated == ["f"]
    world.dies("f")
    assert world.terminated == ["s", "t"]
    world.dies("s")
    assert world.terminated == ["t"]
    world.dies("t")
    world.dies("e")
    assert world.code == 0


def test_who_does_not_stop_is_killed_in_time() -> None:
    world = _world()
    world.stop()
    world.wait(10.9)
    assert world.killed == []
    world.wait(0.2)
    assert world.killed == ["f"], "the drain time of those who listen"
    world.dies("f")
    world.wait(2.1)
    assert world.killed == ["s", "t"]


def test_a_second_signal_kills_everybody_with_its_code() -> None:
    world = _world()
    world.stop()
    world.stop(130)
    assert set(world.killed) == {"e", "s", "t", "f"}
    for name in list(world.living):
        world.dies(name)
    assert world.code == 130


def test_the_end_does_not_wait_for_ever() -> None:
    world = _world()
    world.stop()
    world.stop(130)
    world.wait(10.1)
    assert world.code == 130


def test_the_dead_are_replaced_while_others_drain() -> None:
    world = _world()
    world.stop()
    world.dies("e", progress=True)
    assert world.living["e"] == 2
    world.dies("f")
    assert set(world.living) == {"e", "s", "t"}
    assert world.terminated == ["s", "t"]


def test_who_should_stop_is_not_replaced() -> None:
    world = _world()
    world.stop()
    world.dies("f")
    world.dies("s")
    world.dies("t")
    assert set(world.living) == {"e"}


def test_a_stop_during_the_start_kills_what_is_not_ready() -> None:
    world = _world(serving=False)
    world.ready("e", "s")
    world.stop()
    assert (world.killed, world.terminated) == (["t"], ["s"])
    world.dies("t")
    world.dies("s")
    world.dies("e")
    assert world.code == 0


def test_replacement_waits_until_the_whole_cohort_is_dead() -> None:
    world = _world(Strategy.REST_FOR_ONE)
    world.dies("s", progress=True)
    assert set(world.killed) == {"t", "f"}
    assert set(world.living) == {"e", "t", "f"}
    world.dies("f")
    assert set(world.living) == {"e", "t"}
    world.dies("t")
    assert world.living == {"e": 1, "s": 2, "t": 2, "f": 2}


def test_a_second_death_joins_the_first_ones_cohort() -> None:
    world = _world(Strategy.REST_FOR_ONE)
    world.dies("t", progress=True)
    assert world.killed == ["f"]
    world.dies("s", progress=True)
    assert "t" not in world.living
    world.dies("f")
    assert world.living == {"e": 1, "s": 2, "t": 2, "f": 2}


def test_who_is_killed_for_anothers_sake_is_not_to_blame() -> None:
    world = _world(Strategy.ONE_FOR_ALL)
    for _ in range(10):
        world.dies("s", progress=True)
        for name in ("e", "t", "f"):
            world.dies(name)
        world.ready("e", "s", "t", "f")
    assert world.living == {"e": 11, "s": 11, "t": 11, "f": 11}


def test_a_pause_is_not_shortened_by_anothers_death() -> None:
    world = _world(Strategy.REST_FOR_ONE)
    for _ in range(2):
        world.dies("f")
    world.dies("s", progress=True)
    world.dies("t")
    assert world.living == {"e": 1}
    world.wait(0.11)
    assert world.living == {"e": 1, "s": 2, "t": 2, "f": 3}


def test_a_company_that_fails_while_it_drains_drains_no_longer() -> None:
    world = _world()
    world.stop()
    for _ in range(4):
        world.dies("e")
        world.wait(0.6)
    assert world.life.act is Act.FAILING
    world.wait(5.1)
    assert "f" in world.killed
    world.stop(130)
    for name in list(world.living):
        world.dies(name)
    assert world.code == 1, "the failure is what the exit code tells"


def test_no_progress_waits_and_then_gives_up() -> None:
    world = _world()
    world.dies("e")
    assert world.living["e"] == 2
    world.dies("e")
    assert "e" not in world.living
    world.wait(0.11)
    assert world.living["e"] == 3
    world.dies("e")
    world.wait(0.51)
    world.dies("e")
    assert world.life.act is Act.FAILING
    assert world.failures() == [
        "e died again without having got any work done, and root allows 3 such deaths within 60 s; "
        "the last time it was killed by SIGKILL."
    ]
    assert set(world.terminated) == {"s", "t", "f"}
    world.wait(5.1)
    assert set(world.killed) == {"s", "t", "f"}
    for name in list(world.living):
        world.dies(name)
    assert world.code == 1


def test_a_refusal_at_the_first_start_ends_the_company() -> None:
    world = _world(serving=False)
    world.dies("e", itself=True, refusal="there is no model.")
    assert (world.failures(), world.code) == (["there is no model."], 1)


def test_a_crash_at_the_first_start_ends_the_company() -> None:
    world = _world(serving=False)
    world.dies("e", itself=True)
    assert (world.failures(), world.code) == (["e could not start: it was killed by SIGKILL."], 1)


def test_a_kill_at_the_first_start_does_not() -> None:
    world = _world(serving=False)
    world.dies("e")
    assert world.living == {"e": 2}
    world.ready("e", "s", "t", "f")
    assert world.life.act is Act.SERVING


def test_too_late_at_the_first_start() -> None:
    world = _world(serving=False)
    world.wait(30.1)
    assert world.killed == ["e"]
    world.dies("e")
    assert world.failures() == ["e could not start: it was not ready after 30 s, so it was killed."]


def test_too_late_after_a_restart_counts_against_the_budget() -> None:
    world = _world()
    world.dies("e", progress=True)
    world.wait(30.1)
    assert world.killed == ["e"]
    world.dies("e")
    assert world.living["e"] == 3
    assert world.told[-2] == notices.Lost("e", "was not ready after 30 s, so it was killed", 0.0)


def test_a_hung_actor_is_killed_before_it_is_replaced() -> None:
    world = _world()
    world.obey(world.life.turn(Hangs("s", "made no turn of its loop for 5.0 s"), world.now))
    assert world.killed == ["s"]
    assert world.living["s"] == 1
    world.dies("s", progress=True)
    assert world.living["s"] == 2


def test_administrators_may_replace_as_often_as_they_like() -> None:
    world = _world()
    for i in range(20):
        world.obey(world.life.turn(Replace("t", gently=i % 2 == 0), world.now))
        assert "t" in (world.terminated if i % 2 == 0 else world.killed)
        world.dies("t")
        world.ready("t")
    assert world.living["t"] == 21


def test_a_gentle_replacement_becomes_a_hard_one_in_time() -> None:
    world = _world()
    world.obey(world.life.turn(Replace("t", gently=True), world.now))
    world.wait(2.1)
    assert world.killed == ["t"]


STRATEGIES = st.sampled_from(list(Strategy))


class Company(RuleBasedStateMachine):
    """Anything may happen at any time; the company keeps its promises."""

    @initialize(outer=STRATEGIES, inner=STRATEGIES, restarts=st.integers(0, 4))
    def start(self, outer: Strategy, inner: Strategy, restarts: int) -> None:
        ranks = Group("ranks", inner, (_child("r0"), _child("r1"), _child("s", 1)), Budget(restarts, 20.0))
        root = Group(
            "root", outer, (ranks, _child("t", 1), _child("f", 2, listens=True)), Budget(restarts, 20.0)
        )
        self.names = [child.name for child in leaves(root)]
        self.world = World(Lifecycle(root, drain_seconds=10.0))
        self.stops = 0
        self.world.begin()

    def _running(self) -> bool:
        return self.world.code is None and bool(self.world.living)

    @precondition(_running)
    @rule(data=st.data(), progress=st.booleans(), itself=st.booleans())
    def death(self, data: st.DataObject, progress: bool, itself: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.living)))
        progress = progress and self.world.life.phase(name) is not Phase.STARTING
        self.world.dies(name, progress=progress, itself=itself)

    @precondition(_running)
    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        self.world.ready(data.draw(st.sampled_from(sorted(self.world.living))))

    @precondition(_running)
    @rule()
    def reap_the_killed(self) -> None:
        for name in tuple(self.world.killed):
            if name in self.world.living:
                self.world.dies(name)

    @precondition(_running)
    @rule(data=st.data(), gently=st.booleans())
    def replace(self, data: st.DataObject, gently: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.living)))
        self.world.obey(self.world.life.turn(Replace(name, gently), self.world.now))

    @precondition(_running)
    @rule(data=st.data())
    def hang(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.living)))
        self.world.obey(self.world.life.turn(Hangs(name, "stood still"), self.world.now))

    @precondition(lambda self: self.world.code is None)
    @rule(seconds=st.sampled_from([0.05, 0.6, 3.0, 40.0]))
    def time(self, seconds: float) -> None:
        self.world.wait(seconds)

    @precondition(lambda self: self.world.code is None and self.stops < 2)
    @rule()
    def stop(self) -> None:
        self.stops += 1
        self.world.stop()

    @precondition(lambda self: self.world.code is not None)
    @rule()
    def over(self) -> None:
        assert self.world.life.deadline() == math.inf
        assert self.world.life.act is Act.ENDED

    @invariant()
    def phases_tell_the_truth(self) -> None:
        for name in self.names:
            phase = self.world.life.phase(name)
            assert (phase in {Phase.DOWN, Phase.DUE}) == (name not in self.world.living) or self.world.code
            assert phase is not Phase.DOOMED or name in self.world.killed

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """While the company serves, whoever has no process gets one, now or at a known time."""
        life = self.world.life
        if life.act is Act.SERVING:
            for name in self.names:
                assert life.phase(name) is not Phase.DOWN
                if life.phase(name) is Phase.DUE:
                    assert life.deadline() < math.inf or self.world.killed

    def teardown(self) -> None:
        """However it stands, killing everybody and waiting ends the company."""
        if not hasattr(self, "world"):
            return
        for _ in range(2):
            if self.world.code is None:
                self.world.stop()
        for name in sorted(self.world.living):
            if self.world.code is None:
                self.world.dies(name)
        self.world.wait(11.0)
        assert self.world.code is not None


TestCompany = Company.TestCase
TestCompany.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
