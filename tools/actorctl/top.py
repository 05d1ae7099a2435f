"""`actorctl top`: the live page in a terminal: rates, load and pages of every actor, and what happens."""

from __future__ import annotations

import datetime
import math
from collections import deque
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tools.actorctl.output import Heading, make_table, output_option, show
from tools.actorctl.target import Ask, administers

_HEADINGS: tuple[Heading, ...] = (
    ("name", "NAME"),
    ("state", "STATE"),
    ("restarts", "RESTARTS"),
    ("inbox_bytes", "INBOX"),
    ("in_rate", "MSG IN/S"),
    ("out_rate", "MSG OUT/S"),
    ("running", "RUNNING"),
    ("waiting", "WAITING"),
    ("token_rate", "TOK/S"),
    ("guessed", "GUESSED RIGHT"),
    ("pages", "PAGES USED"),
    ("busy", "BUSY %"),
)
EVENTS = 8
"""The latest of what has happened that are shown."""


@click.command()
@output_option
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("-n", "--iterations", type=click.IntRange(min=1), help="Stop after so many looks.")
@administers
def top(ask: Ask, output: str, interval: float, iterations: int | None) -> None:
    """Watch the actors work. On a pipe, or with -o json, one look is printed."""
    console = Console()
    if output != "table" or not console.is_terminal:
        _print_once(ask, min(interval, 1.0), output)
        return
    screen = Screen()
    with Live(console=console, screen=iterations is None, auto_refresh=False) as live:

        def take(reply: dict[str, Any]) -> None:
            screen.take(reply)
            live.update(screen.shown(), refresh=True)

        request = {"verb": "watch", "interval": interval, "looks": iterations or 0}
        ask(request, take, timeout=math.inf)


def _print_once(ask: Ask, interval: float, output: str) -> None:
    looks: list[dict[str, Any]] = []
    request = {"verb": "watch", "interval": interval, "looks": 1}
    ask(request, lambda reply: looks.append(reply["status"]) if "status" in reply else None, timeout=math.inf)
    show(looks[-1], looks[-1]["actors"], output, headings=_HEADINGS)


class Screen:
    """What was seen last, and what has happened (`events`, the latest of them)."""

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)

    def take(self, reply: dict[str, Any]) -> None:
        """A frame of the verb's. How far an actor is takes the place of how far it was."""
        self._status = reply.get("status", self._status)
        for event in reply.get("events", ()):
            last = self.events[-1] if self.events else {}
            if event["kind"] == last.get("kind") == "progress" and event["actor"] == last.get("actor"):
                self.events.pop()
            self.events.append(event)

    def shown(self) -> Group:
        """All of it."""
        status, rows = self._status, self._status["actors"]
        total = sum(row["token_rate"] or 0.0 for row in rows)
        head = f"{status['name']}  {status['state']}  {status['model']}  {status['url']}  {total:.0f} tok/s"
        events = [
            Text(f"{_clock(event['time'])}  {event['text']}", _STYLES.get(event["kind"], ""))
            for event in self.events
        ]
        return Group(Text(head, style="bold"), Text(), make_table(rows, _HEADINGS), Text(), *events)


_STYLES = {"lost": "bold red", "failed": "bold red", "ready": "green", "serving": "green"}


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%H:%M:%S")
