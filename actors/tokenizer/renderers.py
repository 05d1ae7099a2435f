"""Chat templates rendered by helper processes, each prompt within a deadline.

    render ─► a place ─► an idle helper ─► text, or the template's refusal
                            └─ too late, or dead ─► killed, replaced, and the prompt refused

A template that never ends thus costs its own request, and for a while one of HELPERS; everything else of the
tokenizer goes on. The helper used last is used next, so that one of them does nearly all the work.
"""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import trio

from actors.tokenizer.render_helper import LENGTH, Answer, Sources, decode_answer, frame
from protocols.errors import ErrorBody, UserError
from protocols.request import ChatPrompt

HELPERS = 2
_READ = 1 << 20
_ROOT = pathlib.Path(__file__).resolve().parents[2]


class Helper:
    """One process. Whoever began a prompt with it must see its answer, or kill it."""

    def __init__(self, sources: Sources) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "actors.tokenizer.render_helper", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join((str(_ROOT), *filter(None, sys.path)))},
            )
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._sources: Sources | None = sources
        self.pid = self._process.pid

    async def begin(self) -> None:
        """Wait until it can be asked. Raises trio.BrokenResourceError where it is dead."""
        if self._sources is not None:
            await self._stream.send_all(frame(self._sources))
            await self._receive()
            self._sources = None

    async def ask(self, prompt: ChatPrompt) -> Answer:
        """The answer. Raises trio.BrokenResourceError where it is dead."""
        await self._stream.send_all(frame(prompt))
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


class Renderers:
    """All helpers of a tokenizer; `close` them at the end. seconds: of one prompt."""

    def __init__(self, sources: Sources, seconds: float, log: Any) -> None:
        self._sources = sources
        self._seconds = seconds
        self._log = log
        self._places = trio.Semaphore(HELPERS)
        self._idle = [Helper(sources)]

    async def render(self, prompt: ChatPrompt) -> str:
        """The prompt's text. Raises UserError. A helper that somebody else kills is replaced unseen."""
        async with self._places:
            answer = await self._answer(prompt) or await self._answer(prompt)
        if answer is None:
            raise UserError("the chat template died of these messages.", param="messages")
        if isinstance(answer, ErrorBody):
            raise UserError.from_body(answer)
        return answer

    async def _answer(self, prompt: ChatPrompt) -> Answer | None:
        """What a helper says; None where it died. It is idle again if it has answered, and killed
        otherwise."""
        helper = self._idle.pop() if self._idle else Helper(self._sources)
        answer: Answer | None = None
        try:
            await helper.begin()
            with trio.move_on_after(self._seconds) as deadline:
                answer = await helper.ask(prompt)
        except trio.BrokenResourceError:
            return None
        finally:
            self._settle(helper, answered=answer is not None)
        if deadline.cancelled_caught:
            self._log.warning("template_abandoned", pid=helper.pid, seconds=self._seconds)
            return _too_slow(self._seconds)
        return answer

    def _settle(self, helper: Helper, *, answered: bool) -> None:
        if not answered:
            helper.kill()
            helper = Helper(self._sources)
        self._idle.append(helper)

    def close(self) -> None:
        """End all that wait."""
        while self._idle:
            self._idle.pop().kill()


def _too_slow(seconds: float) -> ErrorBody:
    message = f"the chat template did not render these messages within {seconds:g} s."
    return ErrorBody(400, message, param="messages")
