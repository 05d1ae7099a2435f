"""Where every task and every thread of this process is, as text."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType

import trio


def stacks() -> str:
    """The tasks of the Trio run that this is called in, outermost first, and the other threads."""
    return "\n".join((*_tasks(), *_threads()))


def _tasks() -> Iterator[str]:
    root = trio.lowlevel.current_root_task()
    todo = [(root, 0)] if root is not None else []
    while todo:
        task, depth = todo.pop()
        yield f"{'  ' * depth}task {task.name}"
        for frame, line in task.iter_await_frames():
            yield f"{'  ' * depth}  {_place(frame, line)}"
        todo += [(child, depth + 1) for nursery in task.child_nurseries for child in nursery.child_tasks]


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            yield f"thread {names.get(ident, ident)}"
            yield from (f"  {_place(at, line)}" for at, line in traceback.walk_stack(frame))


def _place(frame: FrameType, line: int) -> str:
    code = frame.f_code
    return f"{code.co_qualname}, {code.co_filename}:{line}"
