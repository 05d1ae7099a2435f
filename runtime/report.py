"""What an actor tells its supervisor about itself: lines of JSON through a pipe of its own."""

from __future__ import annotations

import contextlib
import os

import msgspec

LINE = 4096
"""Longest line in bytes: what a pipe takes whole or not at all (PIPE_BUF)."""
_TEXT = 1000
"""Longest text in characters, so that a line stays below LINE however its characters are escaped."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """It serves from now on; its work tick stood at `work_tick`."""

    work_tick: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far its start has come, for people."""

    text: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Why it is about to exit. `exit_code`: wish of a StartError whose sentence this is; None: a crash."""

    sentence: str
    exit_code: int | None = None


Report = Ready | Progress | Failed

_encode = msgspec.json.Encoder().encode
_decode: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


class Reporter:
    """The actor's end. It never waits: a supervisor that does not read loses reports, not actors."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)

    def __call__(self, report: Report) -> None:
        """Send one report."""
        match report:
            case Progress(text):
                report = Progress(text[:_TEXT])
            case Failed(sentence, exit_code):
                report = Failed(sentence[:_TEXT], exit_code)
            case Ready():
                pass
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._fd, _encode(report) + b"\n")


class Reports:
    """The supervisor's end: bytes in, reports out. What is not a report is left out: the actor was
    killed in the middle of a line, or something else wrote there."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Report]:
        """The reports completed by `data`."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:LINE]
        found: list[Report] = []
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                found.append(_decode.decode(line))
        return found
