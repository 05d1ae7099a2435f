"""What the supervisor tells the people who watch it, as values, and each of them as a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, assert_never


@dataclass(frozen=True)
class Starting:
    """An actor's process was started."""

    name: str
    incarnation: int


@dataclass(frozen=True)
class Progress:
    """An actor says how far it has come with its start."""

    name: str
    text: str


@dataclass(frozen=True)
class Ready:
    """An actor is ready, `seconds` after its start."""

    name: str
    incarnation: int
    seconds: float


@dataclass(frozen=True)
class Serving:
    """Every stage is ready, `seconds` after the company's start. model, url: what is served, and where."""

    seconds: float
    model: str = ""
    url: str = ""


@dataclass(frozen=True)
class Lost:
    """An actor died and is replaced in `delay` seconds."""

    name: str
    reason: str
    delay: float


@dataclass(frozen=True)
class Stopping:
    """The company ends in an orderly way: open work is finished first."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The company cannot start or cannot go on."""

    sentence: str


Notice = Starting | Progress | Ready | Serving | Lost | Stopping | Failed
Announce = Callable[[Notice], None]


def describe(notice: Notice) -> str:
    """The notice as one line for a person."""
    match notice:
        case Starting(name, 1):
            return f"starting {name} ..."
        case Starting(name, incarnation):
            return f"starting {name} again (incarnation {incarnation}) ..."
        case Progress(name, text):
            return f"{name}: {text}"
        case Ready(name, _, seconds):
            return f"{name} ready in {seconds:.1f} s"
        case Serving(seconds, model, url):
            return f"ready in {seconds:.1f} s" + (f": serving {model} at {url}" if url else "")
        case Lost(name, reason, delay):
            return f"{name} {reason}; replaced " + (f"in {delay:g} s" if delay else "at once")
        case Stopping(reason):
            return f"stopping: {reason}"
        case Failed(sentence):
            return sentence
        case _:
            assert_never(notice)


def log(notice: Notice, logger: Any) -> None:
    """The notice as a line of a log."""
    match notice:
        case Lost(name, reason, delay):
            logger.warning("actor lost", name=name, reason=reason, delay=delay)
        case Failed(sentence):
            logger.error("company failed", reason=sentence)
        case _:
            logger.info(describe(notice))
