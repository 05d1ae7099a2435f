"""An actor's context, and the process that makes one."""

from __future__ import annotations

import dataclasses
import gc
import pathlib
import subprocess
import sys
import time
import weakref

import pytest
import structlog
import trio
import trio.testing

from protocols.board import Column, State
from protocols.messages import Abort
from protocols.orders import Freeze
from protocols.plan import Plan
from runtime.actor import HEARTBEAT, Context, heartbeat
from runtime.board import Board
from runtime.ledger import Ledger
from runtime.memory import Exchange
from runtime.process import act
from runtime.report import Failed, Progress, Ready, Report
from runtime.tree import Child, Company, Group, Strategy
from runtime.wiring import Wiring, ledger_layout
from tests.faults import players

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _context(told: list[Report]) -> Context[Abort | Plan]:
    exchange = Exchange(("actor.0", "other.0"))
    board = Board.create(1)
    config = players.config("x")
    return Context(
        name="actor.0",
        index=0,
        incarnation=1,
        config=config,
        inbox=exchange.inbox("actor.0", Abort | Plan),
        outbox=exchange.outbox("actor.0"),
        vitals=board.row(0),
        board=board,
        rows={"actor.0": 0},
        ledger=Ledger.create(ledger_layout(config), config.frontends),
        log=structlog.get_logger(),
        report=told.append,
    )


class _Loop:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.itself = self


async def test_what_was_frozen_and_is_garbage_is_collected_at_the_next_freeze() -> None:
    context, loop = _context([]), _Loop()
    kept = weakref.ref(loop)
    try:
        await context.carry_out(Freeze())
        del loop
        gc.collect()
        assert kept() is not None
        await context.carry_out(Freeze())
        assert kept() is None
    finally:
        gc.unfreeze()


def test_an_actor_tells_how_it_is() -> None:
    told: list[Report] = []
    context = _context(told)
    context.worked()
    context.progress("loading weights 40%")
    context.ready()
    context.tick()
    assert told == [Progress("loading weights 40%"), Ready(1)]
    assert context.vitals[Column.STATE] == State.READY
    assert (context.vitals[Column.LOOP_TICK], context.vitals[Column.WORK_TICK]) == (1, 1)
    context.drain()
    assert context.stopping.is_set()
    assert context.vitals[Column.STATE] == State.DRAINING


def test_busy_work_may_be_nested_and_may_fail() -> None:
    vitals = (context := _context([])).vitals
    before = time.monotonic_ns()
    with pytest.raises(ValueError, match="bad"), context.busy():
        since = vitals[Column.BUSY_SINCE_NS]
        assert before <= since <= time.monotonic_ns()
        with context.busy():
            assert vitals[Column.BUSY_SINCE_NS] == since
        assert vitals[Column.BUSY_SINCE_NS] == since
        raise ValueError("bad")
    assert vitals[Column.BUSY_SINCE_NS] == 0


async def test_busy_work_may_overlap(autojump_clock: trio.testing.MockClock) -> None:
    """Two tasks, the first to begin is the first to end; the second one still counts."""
    vitals = (context := _context([])).vitals

    async def work(begin: float, end: float) -> None:
        await trio.sleep(begin)
        with context.busy():
            await trio.sleep(end - begin)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, 1, 3)
        nursery.start_soon(work, 2, 4)
        await trio.sleep(2.5)
        first = vitals[Column.BUSY_SINCE_NS]
        await trio.sleep(1)
        assert vitals[Column.BUSY_SINCE_NS] > first > 0
        await trio.sleep(1)
        assert vitals[Column.BUSY_SINCE_NS] == 0


async def test_an_idle_actor_shows_that_it_lives(autojump_clock: trio.testing.MockClock) -> None:
    context = _context([])
    with trio.move_on_after(10.5 * HEARTBEAT):
        await heartbeat(context)
    assert context.vitals[Column.LOOP_TICK] == 11


async def test_it_shows_how_much_mail_was_dropped(autojump_clock: trio.testing.MockClock) -> None:
    exchange = Exchange(("actor.0", "other.0"), ("other.0", "actor.0"))
    context = dataclasses.replace(_context([]), inbox=exchange.inbox("actor.0", Abort))
    await exchange.outbox("other.0").send("actor.0", Plan(0, 0))
    with pytest.raises(trio.WouldBlock):
        context.inbox.receive_nowait()
    with trio.move_on_after(HEARTBEAT / 2):
        await heartbeat(context)
    assert context.vitals[Column.MAIL_DROPPED_TOTAL] == 1


async def test_the_heartbeat_ends_with_the_actor() -> None:
    context = _context([])

    async def run(context: Context[Abort | Plan]) -> None:
        context.ready()

    await act(context, run)
    assert context.vitals[Column.STATE] == State.READY


def _company(*children: Child) -> Company:
    return Company(players.config("x"), Group("root", Strategy.ONE_FOR_ONE, children))


def test_each_actor_inherits_its_edges_and_no_others() -> None:
    a = Child("a", "k", "m:f", sends=("b", "c"))
    b = Child("b", "k", "m:f", sends=("a",))
    c = Child("c", "k", "m:f")
    wiring = Wiring(_company(a, b, c), None)
    first, again = wiring.spec(a, 1, report=9), wiring.spec(a, 2, report=9)
    assert [edge.peer for edge in first.outbox] == ["b", "c"]
    assert [edge.peer for edge in first.inbox] == ["b"]
    assert first.inbox[0].doorbell == first.doorbell
    assert first.descriptors() == again.descriptors(), "the next incarnation has the same memory"
    assert [edge.peer for edge in wiring.spec(c, 1, report=9).inbox] == ["a"]
    assert first.listener == -1
    spare = wiring.understudy("u", (a, c), report=9, line=11, cue=10)
    wanted = {*first.descriptors(), *wiring.spec(c, 1, report=9).descriptors()} - {9}
    assert set(spare.inherited) == wanted
    wiring.close()


def test_the_ledger_divides_evenly_among_the_frontends() -> None:
    layout = ledger_layout(players.config("x", max_open=10, frontends=3))
    assert layout.slots == 12
    assert layout.tokens == 256
    assert layout.request_bytes >= 4 * 256


@pytest.mark.parametrize(
    ("entry", "failed"),
    [
        ("tests.faults.players:refuser", Failed("there is no model in /nowhere.", 3)),
        ("tests.faults.players:loader", Failed("ValueError: bad weights")),
        (
            "tests.faults.players:nobody",
            Failed("AttributeError: module 'tests.faults.players' has no attribute 'nobody'"),
        ),
        ("tests.faults.nothing:run", Failed("ModuleNotFoundError: No module named 'tests.faults.nothing'")),
    ],
)
def test_how_an_actor_fails(entry: str, failed: Failed) -> None:
    """In a process of its own, as it takes over the descriptors it is given."""
    script = (
        "import os, structlog\n"
        "from runtime.blackbox import BlackBox\n"
        "from runtime.process import perform\n"
        "from tests.runtime.test_actor import _company\n"
        "from runtime.tree import Child\n"
        "from runtime.wiring import Wiring\n"
        f"child = Child('a.0', 'k', {entry!r})\n"
        "reader, writer = os.pipe()\n"
        "spec = Wiring(_company(child), None).spec(child, 1, writer)\n"
        "told = []\n"
        "box = BlackBox.private()\n"
        "code = perform(spec, structlog.get_logger(), box, told.append)\n"
        "assert code == 1\n"
        f"assert told[-1].__class__.__name__ == 'Failed' and told[-1].sentence == {failed.sentence!r}\n"
        f"assert told[-1].exit_code == {failed.exit_code!r}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert ("Traceback" in done.stdout) == (failed.exit_code is None)


def test_no_module_of_the_runtime_knows_torch() -> None:
    modules = [f"runtime.{path.stem}" for path in sorted((ROOT / "runtime").glob("*.py"))]
    script = (
        "import sys, importlib\n"
        f"for m in {modules!r}: importlib.import_module(m)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert len(modules) > 10
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
