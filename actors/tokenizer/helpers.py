"""Helper processes, asked one question at a time, each within a deadline.

    ask ─► a place ─► an idle helper ─► its answer
                          └─ too late, or dead ─► killed, replaced, and the question refused

A question that never ends thus costs its own request, and for a while one of HELPERS; everything else of the
tokenizer goes on. The helper used last is used next, so that one of them does nearly all the work.
"""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from actors.tokenizer.helper_process import LENGTH, Answer, decode_answer, frame
from protocols.errors import ErrorBody, UserError

HELPERS = 2
_READ = 1 << 20
_ROOT = pathlib.Path(__file__).resolve().parents[2]


class TooSlow(Exception):
    """There was no answer in time."""


class Died(Exception):
    """The question killed the helper that it was put to, twice."""


class Helper:
    """One process. Whoever began a question with it must see its answer, or kill it."""

    def __init__(self, module: str, opening: Callable[[], msgspec.Struct]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join((str(_ROOT), *filter(None, sys.path)))},
            )
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._opening: Callable[[], msgspec.Struct] | None = opening
        self.pid = self._process.pid

    async def begin(self) -> None:
        """Wait until it can be asked. Raises trio.BrokenResourceError where it is dead."""
        if self._opening is not None:
            opening = await trio.to_thread.run_sync(self._opening)
            await self._stream.send_all(frame(opening))
            await self._receive()
            self._opening = None

    async def ask(self, question: msgspec.Struct) -> Answer:
        """The answer. Raises trio.BrokenResourceError where it is dead."""
        await self._stream.send_all(frame(question))
        return await self._receive()

    async def _receive(self) -> Answer:
        """The one frame that is under way: nearly always a single read."""
        data, end = bytearray(), LENGTH.size
        while len(data) < end:
            more = await self._stream.receive_some(_READ)
            if not more:
                raise trio.BrokenResourceError
            data += more
            if len(data) >= LENGTH.size:
                end = LENGTH.size + LENGTH.unpack_from(data)[0]
        return decode_answer(bytes(data[LENGTH.size :]))

    def kill(self) -> None:
        """End and reap the process."""
        self._process.kill()
        self._process.wait()
        self._stream.socket.close()


class Helpers:
    """All helpers of one kind; `close` them at the end. module: what they run; opening: what they work with;
    seconds: of one question; early: one is started before it is needed."""

    def __init__(
        self, module: str, opening: Callable[[], msgspec.Struct], seconds: float, log: Any, *, early: bool
    ) -> None:
        self._module, self._opening = module, opening
        self._seconds = seconds
        self._log = log
        self._places = trio.Semaphore(HELPERS)
        self._idle = [self._new()] if early else []

    @property
    def pids(self) -> list[int]:
        """Of those that wait."""
        return [helper.pid for helper in self._idle]

    async def ask(self, question: msgspec.Struct) -> str:
        """The answer. Raises UserError where it is a refusal, TooSlow, or Died. A helper that somebody else
        kills is replaced, and the question asked again."""
        async with self._places:
            answer = await self._answer(question)
            if answer is None:
                answer = await self._answer(question)
        if answer is None:
            raise Died
        if isinstance(answer, ErrorBody):
            raise UserError.from_body(answer)
        return answer

    async def _answer(self, question: msgspec.Struct) -> Answer | None:
        """What a helper says; None where it died. It is idle again if it has answered, and killed
        otherwise."""
        helper = self._idle.pop() if self._idle else self._new()
        answer: Answer | None = None
        try:
            await helper.begin()
            with trio.move_on_after(self._seconds) as deadline:
                answer = await helper.ask(question)
        except trio.BrokenResourceError:
            return None
        finally:
            self._settle(helper, answered=answer is not None)
        if deadline.cancelled_caught:
            self._log.warning("helper_abandoned", module=self._module, pid=helper.pid, seconds=self._seconds)
            raise TooSlow
        return answer

    def _settle(self, helper: Helper, *, answered: bool) -> None:
        if not answered:
            helper.kill()
            helper = self._new()
        self._idle.append(helper)

    def _new(self) -> Helper:
        return Helper(self._module, self._opening)

    def close(self) -> None:
        """End all that wait."""
        while self._idle:
            self._idle.pop().kill()
