"""Small actors, and companies of them, for tests of the machinery that runs actors."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import time

import trio

from protocols.board import Column
from protocols.config import Config, ModelCard
from protocols.errors import StartError
from protocols.messages import Abort
from protocols.plan import Plan, StepDone
from runtime.actor import Context
from runtime.supervisor import Budget, Child, Company, Group, Strategy
from tests.patience import PATIENCE

accepts = Plan | StepDone | Abort

BURST = 10
"""Plans that a caller sends for each SIGUSR2."""

HERE = "tests.faults.players"


async def echo(context: Context[Plan | StepDone | Abort]) -> None:
    """Answers each plan; the answer tells the incarnation that gave it. Its row: OPEN_REQUESTS = EXCUSED."""
    context.vitals[Column.OPEN_REQUESTS] = context.vitals[Column.EXCUSED]
    context.ready()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_answer, context)
        await context.stopping.wait()
        nursery.cancel_scope.cancel()


async def _answer(context: Context[Plan | StepDone | Abort]) -> None:
    while True:
        for mail in await context.inbox.receive():
            match mail.message:
                case Plan(epoch, step):
                    done = StepDone(epoch, step, b"", b"", elapsed_us=context.incarnation)
                    await context.outbox.send(mail.source, done)
                    context.worked()
                case StepDone() | Abort():
                    pass


async def caller(context: Context[Plan | StepDone | Abort]) -> None:
    """Sends BURST plans to everybody it knows for each SIGUSR2. Its row: RUNNING = answers so far,
    WAITING = incarnation that gave the last one, STEPS_TOTAL = answers that came in order."""
    with trio.open_signal_receiver(signal.SIGUSR2) as bursts:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_count, context)
            nursery.start_soon(_send, context, bursts)
            context.ready()
            await context.stopping.wait()
            nursery.cancel_scope.cancel()


async def _send(context: Context[Plan | StepDone | Abort], bursts: object) -> None:
    step = 0
    async for _ in bursts:  # type: ignore[attr-defined]
        for _ in range(BURST):
            step += 1
            for to in context.outbox.destinations:
                await context.outbox.send(to, Plan(0, step))


async def _count(context: Context[Plan | StepDone | Abort]) -> None:
    while True:
        for mail in await context.inbox.receive():
            if isinstance(mail.message, StepDone):
                vitals = context.vitals
                vitals.add(Column.RUNNING)
                vitals[Column.WAITING] = mail.message.elapsed_us
                vitals.add(Column.STEPS_TOTAL, int(mail.message.step == vitals[Column.RUNNING]))
                context.worked()


async def crasher(context: Context[Abort]) -> None:
    """Fails after it was ready, without having done anything."""
    context.ready()
    raise RuntimeError("a bug")


async def loader(context: Context[Abort]) -> None:
    """Fails before it is ready."""
    context.progress("loading weights 40%")
    raise ValueError("bad weights")


async def refuser(context: Context[Abort]) -> None:
    """Cannot start, for a reason that a person can mend."""
    raise StartError("there is no model in /nowhere.", exit_code=3)


async def sluggish(context: Context[Abort]) -> None:
    """Never becomes ready."""
    await trio.sleep_forever()


async def spinner(context: Context[Abort]) -> None:
    """Blocks its event loop for ever once it has worked."""
    context.ready()
    context.worked()
    await trio.sleep(0.1)
    while True:
        time.sleep(1)


async def thinker(context: Context[Abort]) -> None:
    """Blocks its event loop for longer than the hang deadline, but says so; then for ever."""
    context.ready()
    with context.busy():
        time.sleep(3)
    context.worked()
    with context.busy():
        time.sleep(1000)


async def stubborn(context: Context[Abort]) -> None:
    """Does not stop when it is asked to."""
    context.ready()
    await context.stopping.wait()
    await trio.sleep_forever()


async def parent(context: Context[Abort]) -> None:
    """Has a process of its own."""
    process = await trio.lowlevel.open_process(["sleep", "1000"])
    context.vitals[Column.RUNNING] = process.pid
    context.ready()
    await context.stopping.wait()


async def host(context: Context[Abort]) -> None:
    """Answers every connection with its incarnation; drains until there is a file of the name DRAIN."""
    assert context.listener is not None
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(context.listener))

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"%d" % context.incarnation)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        context.ready()
        await context.stopping.wait()
        while (drained := os.environ["DRAIN"]) and not os.path.exists(drained):
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


def child(name: str, function: str, **options: object) -> Child:
    """An actor of this module, with short deadlines."""
    defaults: dict[str, object] = {"hang_seconds": 2.0, "busy_seconds": 6.0, "stop_seconds": 1.0}
    index = int(name.rpartition(".")[2])
    return Child(name, function, f"{HERE}:{function}", index, **{**defaults, **options})  # type: ignore[arg-type]


def config(name: str, **options: object) -> Config:
    """Options of a company without a model."""
    card = ModelCard("none", "/", "None", context=256, vocab_size=256, eos=())
    defaults: dict[str, object] = {"port": 0, "max_open": 8, "ring_bytes": 65536}
    return Config(card, name, **{**defaults, **options})  # type: ignore[arg-type]


def _pair(**options: object) -> tuple[Child, ...]:
    return (
        child("echo.0", "echo", sends=("caller.0",)),
        child("caller.0", "caller", stage=1, sends=("echo.0",), **options),
    )


def _flat(*children: Child, restarts: int = 5) -> Group:
    return Group("company", Strategy.ONE_FOR_ONE, children, Budget(restarts, 60.0))


ROOTS: dict[str, Group] = {
    "pair": _flat(*_pair()),
    "patient": _flat(*(dataclasses.replace(each, hang_seconds=PATIENCE) for each in _pair())),
    "spared": _flat(*(dataclasses.replace(each, understudy="light") for each in _pair())),
    "prepared": _flat(*_pair(understudy="late")),
    "all": Group("company", Strategy.ONE_FOR_ALL, _pair()),
    "crasher": _flat(child("echo.0", "echo"), child("crasher.0", "crasher"), restarts=2),
    "loader": _flat(child("echo.0", "echo"), child("loader.0", "loader", stage=1)),
    "refuser": _flat(child("echo.0", "echo"), child("refuser.0", "refuser", stage=1)),
    "sluggish": _flat(child("sluggish.0", "sluggish", ready_seconds=1.0)),
    "spinner": _flat(child("spinner.0", "spinner")),
    "thinker": _flat(child("thinker.0", "thinker")),
    "stubborn": _flat(child("stubborn.0", "stubborn")),
    "parent": _flat(child("parent.0", "parent")),
    "host": _flat(
        child("echo.0", "echo"),
        child(
            "host.0",
            "host",
            stage=1,
            listens=True,
            env={"DRAIN": os.environ.get("DRAIN", "")},
            hang_seconds=PATIENCE,
        ),
    ),
    "nameless": _flat(Child("ghost.0", "ghost", "tests.faults.no_such_module:run")),
}


def company(kind: str, name: str, socket: str = "", drain: float = 5.0, port: int = 0) -> Company:
    """One of ROOTS, ready to run."""
    return Company(config(name, socket=socket, drain_seconds=drain, port=port), ROOTS[kind])


def source_root() -> pathlib.Path:
    """Where the packages lie."""
    return pathlib.Path(__file__).resolve().parents[2]
