"""The executor actor over mail in memory, with the hash executor behind it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import structlog
import trio

from actors import executor as actor
from gpu.hash_executor import Flight, HashExecutor
from protocols import oracle
from protocols.board import Column, State
from protocols.config import Config, ExecutorKind, ModelCard
from protocols.ledger import Layout
from protocols.messages import SchedulerMail
from protocols.orders import Adjust, Done
from protocols.plan import Chunk, ExecutorReady, PageGrant, Plan, SlotOpen, StepDone
from protocols.sampling import SamplingParams
from protocols.standing import Settings
from runtime.actor import Context
from runtime.board import Board
from runtime.ledger import Ledger
from runtime.memory import Exchange
from tests.gpu.plans import Driver, Sequence, ints
from tests.patience import PATIENCE

SAMPLING = SamplingParams(seed=5, max_tokens=8)
PROMPT = [3, 1, 4, 1, 5]


def _config(step_ms: float = 0.0) -> Config:
    return Config(
        model=ModelCard("hash", "/", "Hash", context=64, vocab_size=997, eos=(2,)),
        pages=16,
        page_size=4,
        max_running=4,
        executor=ExecutorKind.HASH,
        step_ms=step_ms,
    )


class Desk:
    """The scheduler's end: its mail, and the context of the executor that it talks to."""

    def __init__(self, config: Config) -> None:
        self.exchange = Exchange(("scheduler.0", "executor.0"), ("executor.0", "scheduler.0"))
        self.inbox = self.exchange.inbox("scheduler.0", SchedulerMail)
        self.outbox = self.exchange.outbox("scheduler.0")
        self.board = Board.create(1)
        self.ledger = Ledger.create(Layout(1, 16, 4096, 4096))
        self.context: Context[Any] = Context(
            name="executor.0",
            index=0,
            incarnation=3,
            config=config,
            inbox=self.exchange.inbox("executor.0", actor.accepts),
            outbox=self.exchange.outbox("executor.0", 3),
            vitals=self.board.row(0),
            board=self.board,
            rows={"executor.0": 0},
            ledger=self.ledger,
            log=structlog.get_logger(),
        )

    async def mail(self, count: int) -> list[Any]:
        """The next `count` messages from the executor."""
        messages: list[Any] = []
        with trio.fail_after(PATIENCE):
            while len(messages) < count:
                messages += [mail.message for mail in await self.inbox.receive()]
        return messages


@asynccontextmanager
async def _running(config: Config) -> AsyncIterator[Desk]:
    desk = Desk(config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(actor.run, desk.context)
        yield desk
        desk.context.drain()
    desk.ledger.close()
    desk.board.close()


def _plans(driver: Driver, count: int) -> list[Plan]:
    """A prefill and then decodes of one sequence."""
    sequence = driver.open(Sequence(0, list(PROMPT), SAMPLING))
    plans = [driver.plan([(sequence, 0, len(PROMPT))], [])]
    for _ in range(count - 1):
        sequence.output.append(0)
        plans.append(driver.plan([], [sequence]))
    return plans


def _driver() -> Driver:
    return Driver(HashExecutor.load(_config(), print))


def _tokens(steps: list[StepDone]) -> list[int]:
    return [int(token) for step in steps for token in np.frombuffer(step.tokens, "<i4")]


def _expected(count: int) -> list[int]:
    return list(oracle.continuation(ints(PROMPT), SAMPLING, 0, 997)[0][:count])


async def test_it_announces_its_sizes_by_mail_and_on_the_board() -> None:
    async with _running(_config()) as desk:
        (ready,) = await desk.mail(1)
        vitals = desk.context.vitals
        assert ready == ExecutorReady(incarnation=3, pages=16, page_size=4, slots=4, vocab_size=997)
        await trio.testing.wait_all_tasks_blocked()
        assert [vitals[c] for c in (Column.PAGES_TOTAL, Column.PAGE_SIZE, Column.SLOTS)] == [16, 4, 4]
        assert vitals[Column.STATE] == State.READY


@pytest.mark.parametrize("step_ms", [0.0, 1.0])
async def test_plans_come_back_in_order_as_results(step_ms: float) -> None:
    async with _running(_config(step_ms)) as desk:
        await desk.mail(1)
        plans = _plans(_driver(), 8)
        desk.outbox.send_nowait("executor.0", *plans)
        steps = await desk.mail(8)
        vitals = desk.context.vitals
        assert [(step.epoch, step.step) for step in steps] == [(plan.epoch, plan.step) for plan in plans]
        assert _tokens(steps) == _expected(8)
        await trio.testing.wait_all_tasks_blocked()
        assert vitals[Column.STEPS_TOTAL] == vitals[Column.WORK_TICK] == 8
        assert vitals[Column.STEP_US_TOTAL] == sum(step.elapsed_us for step in steps)
        assert vitals[Column.BUSY_SINCE_NS] == 0


class Recorder(HashExecutor):
    """Notes what is called, and on which step."""

    calls: list[tuple[str, int]]

    def launch(self, plan: Plan) -> Flight:
        self.calls.append(("launch", plan.step))
        return super().launch(plan)

    def finish(self, flight: Flight) -> StepDone:
        done = super().finish(flight)
        self.calls.append(("finish", done.step))
        return done


@pytest.mark.parametrize("step_ms", [0.0, 20.0])
async def test_a_device_that_works_by_itself_gets_the_next_plan_early(step_ms: float) -> None:
    desk = Desk(_config(step_ms))
    executor = Recorder.load(desk.context.config, print)
    executor.calls = []
    desk.outbox.send_nowait("executor.0", *_plans(_driver(), 3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(actor.serve, desk.context, executor)
        steps = await desk.mail(3)
        desk.context.drain()
    names = [name for name, _ in executor.calls]
    assert _tokens(steps) == _expected(3)
    assert [step for name, step in executor.calls if name == "finish"] == [1, 2, 3]
    assert names == (["launch"] * 3 + ["finish"] * 3 if step_ms else ["launch", "finish"] * 3)


async def test_it_stops_while_a_step_is_under_way() -> None:
    with trio.fail_after(PATIENCE):
        async with _running(_config(step_ms=200.0)) as desk:
            await desk.mail(1)
            desk.outbox.send_nowait("executor.0", *_plans(_driver(), 8))
            await trio.testing.wait_all_tasks_blocked()
    assert desk.inbox.depth() == 0


async def test_mail_for_the_incarnation_before_does_no_harm() -> None:
    """Decodes of slots that this process never opened lie in the ring; then the scheduler starts anew."""
    async with _running(_config()) as desk:
        stale, fresh = _plans(_driver(), 6), _plans(_driver(), 3)
        desk.outbox.send_nowait("executor.0", *stale[2:], *fresh, *stale[4:])
        steps = (await desk.mail(4))[1:]
        assert {step.epoch for step in steps} == {fresh[0].epoch}
        assert _tokens(steps) == _expected(3)


def _plan(epoch: int, **parts: Any) -> Plan:
    return Plan(epoch, 1, **parts)


OPEN = SlotOpen(0, 1, SAMPLING, 0, 5, 0)


@pytest.mark.parametrize(
    "strange",
    [
        {"decodes": ints([0, 1])},
        {"chunks": (Chunk(1, 0, b"", False),)},
        {"grants": (PageGrant(1, 0, b""),)},
        {"closes": (0,), "decodes": ints([0])},
    ],
)
def test_an_epoch_that_names_an_unopened_slot_is_closed_for_good(strange: dict[str, Any]) -> None:
    gate = actor.Gate()
    assert gate.admits(_plan(1, opens=(OPEN,)))
    assert gate.admits(_plan(1, decodes=ints([0])))
    assert not gate.admits(_plan(1, **strange))
    assert not gate.admits(_plan(1, opens=(OPEN,)))
    assert gate.admits(_plan(2, opens=(OPEN,), decodes=ints([0])))
    assert not gate.admits(_plan(1, opens=(OPEN,)))


def test_a_new_epoch_opens_its_own_slots() -> None:
    gate = actor.Gate()
    assert gate.admits(_plan(1, opens=(OPEN,)))
    assert not gate.admits(_plan(2, decodes=ints([0])))


def test_without_a_model_it_needs_no_torch() -> None:
    code = (
        "import sys, actors.executor as a, tests.actors.test_executor as t;"
        "a._load(t._config(), print); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_it_waits_before_each_step_as_long_as_it_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Time is virtual: what passes is what was waited for."""
    delay, plans = 7.0, _plans(_driver(), 6)
    async with _running(_config()) as desk:
        await desk.mail(1)
        for settings, some in ((Settings(step_delay=delay), plans[:3]), (Settings(), plans[3:])):
            assert await desk.context.carry_out(Adjust(settings)) == Done()
            begun = trio.current_time()
            desk.outbox.send_nowait("executor.0", *some)
            await desk.mail(3)
            steps_waited = (trio.current_time() - begun) / delay
            assert int(steps_waited) == (3 if settings.step_delay else 0)
