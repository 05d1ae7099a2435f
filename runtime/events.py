"""What happens to a company, and what is to be done about it: events in, commands out of the lifecycle."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.notices import Notice


@dataclass(frozen=True)
class IsReady:
    """The actor reported that it is ready."""

    name: str


@dataclass(frozen=True)
class Died:
    """The actor's process was reaped. progress: it got work done since it was ready. itself: it ended
    of its own accord (exit code or exception), not by a signal. refusal, exit_code: the sentence of the
    StartError it ended with."""

    name: str
    reason: str
    progress: bool
    itself: bool = False
    refusal: str = ""
    exit_code: int = 1


@dataclass(frozen=True)
class Hangs:
    """The actor must be fenced."""

    name: str
    reason: str


@dataclass(frozen=True)
class Replace:
    """Somebody asks for a new incarnation of a running actor; gently: with SIGTERM first."""

    name: str
    gently: bool


@dataclass(frozen=True)
class Stop:
    """Somebody asks for the end of the company. A second one ends it at once, with `code`."""

    reason: str
    code: int


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = IsReady | Died | Hangs | Replace | Stop | Tick


@dataclass(frozen=True)
class Spawn:
    """Start a process for this incarnation."""

    name: str
    incarnation: int


@dataclass(frozen=True)
class Terminate:
    """Send SIGTERM."""

    name: str


@dataclass(frozen=True)
class Kill:
    """Send SIGKILL."""

    name: str


@dataclass(frozen=True)
class Say:
    """Tell whoever watches."""

    notice: Notice


@dataclass(frozen=True)
class End:
    """The company is over; exit with `code`."""

    code: int


Command = Spawn | Terminate | Kill | Say | End
