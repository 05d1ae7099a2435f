"""Shared test plumbing: an `async def` test runs under Trio, with virtual time when it asks for it."""

from __future__ import annotations

import inspect
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

if not pathlib.Path("/dev/nvidiactl").exists():
    # Read when Triton is imported, by whomever: without a GPU its kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell starts what it puts into the background with interrupts ignored, which whoever is started inherits.
signal.signal(signal.SIGINT, signal.default_int_handler)

_POLICY = os.sched_getscheduler(0)


@pytest.fixture(autouse=True)
def own_turns() -> Iterator[None]:
    """An actor that a test ran in this process gave way (`runtime.cores`): companies that later tests start
    would inherit that, their executors too."""
    yield
    if os.sched_getscheduler(0) != _POLICY:
        os.sched_setscheduler(0, _POLICY, os.sched_param(0))


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Virtual time that jumps to the next deadline whenever every task waits."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.fixture
def hand_clock() -> trio.testing.MockClock:
    """Virtual time that stands still until the test lets it `jump`: for tests with real sockets."""
    return trio.testing.MockClock()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests with `trio.run`."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments: dict[str, Any] = {
        name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs
    }
    clock = arguments.get("autojump_clock", arguments.get("hand_clock"))

    async def body() -> None:
        await pyfuncitem.obj(**arguments)

    trio.run(body, clock=clock)
    return True
