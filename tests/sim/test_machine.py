"""The whole core under random mail: whatever happens, every request gets the oracle's tokens once.

`World` checks page conservation, contiguity and foreign contexts after every turn; the machine
only chooses what happens next. At the end of each example everything runs dry and is verified.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from protocols.config import Policy
from protocols.messages import Abort
from protocols.orders import Adjust
from protocols.request import Finish
from protocols.standing import PauseMode, Settings
from tests.sim.world import World, tokens_of

STEMS = (tuple(range(16)), tuple(range(8)) + (1,) * 8, (7,) * 16)
STOPS = (3, 4, 5, 6)


class CoreMachine(RuleBasedStateMachine):
    """Tiny pools, small chunks, any depth."""

    world: World
    next_rid = 0

    @initialize(
        depth=st.sampled_from([1, 2, 4]),
        pages=st.sampled_from([4, 7, 12, 40]),
        page_size=st.sampled_from([1, 2, 4]),
        slots=st.sampled_from([1, 2, 5, 9]),
        chunk_size=st.sampled_from([1, 3, 7, 16]),
        radix=st.booleans(),
        policy=st.sampled_from(list(Policy)),
        guesses=st.sampled_from([0, 1, 3, 6]),
        guess_rows=st.sampled_from([1, 4, 24]),
        burst_us=st.sampled_from([0, 20_000, 200_000]),
        ready=st.booleans(),
    )
    def start(
        self,
        depth: int,
        pages: int,
        page_size: int,
        slots: int,
        chunk_size: int,
        radix: bool,
        policy: Policy,
        guesses: int,
        guess_rows: int,
        burst_us: int,
        ready: bool,
    ) -> None:
        self.world = World(
            depth=depth,
            pages=pages,
            page_size=page_size,
            slots=slots,
            chunk_size=chunk_size,
            radix=radix,
            policy=policy,
            guesses=guesses,
            guess_rows=guess_rows,
            burst_us=burst_us,
            ready=ready,
        )

    def rid(self) -> int:
        self.next_rid += 1
        return self.next_rid

    @rule(
        stem=st.sampled_from(STEMS),
        length=st.integers(1, 16),
        max_tokens=st.integers(1, 20),
        stops=st.sampled_from([(), STOPS]),
        choices=st.integers(1, 3),
        salt=st.sampled_from(["", "tenant"]),
        priority=st.integers(-1, 1),
        penalty=st.sampled_from([1.0, 1.1]),
    )
    def submit(
        self,
        stem: tuple[int, ...],
        length: int,
        max_tokens: int,
        stops: tuple[int, ...],
        choices: int,
        salt: str,
        priority: int,
        penalty: float,
    ) -> None:
        for choice in range(choices):
            self.world.submit(
                self.rid(),
                tokens_of(*stem[:length]),
                max_tokens=max_tokens,
                stops=stops,
                choice=choice,
                salt=salt,
                priority=priority,
                penalty=penalty,
                origin=choice % 2,
            )

    @precondition(lambda self: self.world.submits)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.world.abort(data.draw(st.sampled_from(sorted(self.world.submits))))

    @precondition(lambda self: self.world.submits)
    @rule(data=st.data())
    def stop_here(self, data: st.DataObject) -> None:
        self.world.stop_here(data.draw(st.sampled_from(sorted(self.world.submits))))

    @rule()
    def abort_before_submit(self) -> None:
        submit = self.world.submit(self.rid(), tokens_of(1, 2, 3), deliver=False)
        self.world.finish[submit.rid] = Finish.ABORT
        self.world.turn(Abort(submit.rid))
        self.world.turn(submit)

    @precondition(lambda self: self.world.submits)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        live = [rid for rid in self.world.submits if rid not in self.world.finish]
        if live:
            self.world.turn(self.world.submits[data.draw(st.sampled_from(live))])

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()

    @rule(mode=st.sampled_from(list(PauseMode)))
    def pause(self, mode: PauseMode) -> None:
        self.world.pause(mode)

    @rule()
    def resume(self) -> None:
        self.world.resume()

    @rule(policy=st.sampled_from([*Policy, None]))
    def adjust(self, policy: Policy | None) -> None:
        self.world.turn(Adjust(Settings(policy=policy)))

    @rule()
    def flush(self) -> None:
        self.world.flush()

    @rule()
    def renew(self) -> None:
        self.world.renew()

    @rule()
    def executor_dies(self) -> None:
        self.world.restart()

    @rule()
    def scheduler_dies(self) -> None:
        if self.world.incarnation:
            self.world.restart_scheduler()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        if not self.world.incarnation:
            assert not self.world.plans, "planned for an executor that is not there"
            self.world.restart()
        self.world.resume()
        self.world.drain()
        self.world.verify()


TestCore = CoreMachine.TestCase
TestCore.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
