"""`actorctl logs` and `actorctl log-level`: what the actors have logged, what they log now, and how much."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from runtime.logs import LEVELS, human
from tools.actorctl import completing
from tools.actorctl.output import done, output_option
from tools.actorctl.target import Ask, administers


@click.command()
@click.option(
    "--actor",
    default="",
    shell_complete=completing.actors,
    help="Of this actor alone; the supervisor is one too.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with the lines to come, until interrupted.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="Of each actor.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["auto", "json", "console"]),
    default="auto",
    show_default=True,
    help="auto: for people on a terminal, JSON lines elsewhere.",
)
@administers
def logs(ask: Ask, actor: str, follow: bool, lines: int, style: str) -> None:
    """Print what the actors have logged, also the dead. The oldest line comes first."""
    for_people = style == "console" or (style == "auto" and sys.stdout.isatty())
    printer = _Printer(_for_people() if for_people else click.echo)
    request = {"verb": "logs.read", "actor": actor, "lines": lines, "follow": follow}
    ask(request, printer.take, timeout=math.inf if follow else None)
    printer.flush()


class _Printer:
    """Puts the lines that were there into the order of time, then prints those that come as they come."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._first: list[str] | None = []

    def take(self, reply: dict[str, Any]) -> None:
        """A frame of the verb's."""
        if self._first is None:
            for line in reply["lines"]:
                self._show(line)
            return
        self._first += reply["lines"]
        if reply.get("last"):
            self.flush()

    def flush(self) -> None:
        """All that was there has come."""
        for line in sorted(self._first or (), key=lambda line: str(json.loads(line).get("timestamp", ""))):
            self._show(line)
        self._first = None


def _for_people() -> Callable[[str], None]:
    render = human(colors=sys.stdout.isatty() and "NO_COLOR" not in os.environ)

    def show(line: str) -> None:
        click.echo(render(None, "", json.loads(line)))

    return show


@click.command("log-level")
@click.argument("level", type=click.Choice([*LEVELS, "default"]))
@click.option("--actor", default="", shell_complete=completing.actors, help="For this actor alone.")
@output_option
@administers
def log_level(ask: Ask, level: str, actor: str, output: str) -> None:
    """Log from this level on. It outlives the actors. default: as --log-level says."""
    reply = ask({"verb": "logs.level", "level": level, "actor": actor})
    done(reply, output, level, f"{', '.join(reply['actors'])}: {level}")
