"""Which company a command speaks to, and what an answer or a failure means as an exit code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from protocols.errors import VerbError
from runtime import admin
from tools.actorctl.completing import companies

TIMEOUT, INTERRUPTED = 124, 130
OK, FAILED, USAGE, UNHEALTHY, NOT_FOUND, CONFLICT, UNREACHABLE = 0, 1, 2, 3, 4, 5, 69
EXIT_CODES = {
    "usage": USAGE,
    "not_found": NOT_FOUND,
    "conflict": CONFLICT,
    "failed": FAILED,
    "timeout": TIMEOUT,
}

Document = dict[str, Any]

GRACE = 5.0
"""Seconds beyond its own that a company has to say that it could not do something in time."""
LONGEST = 86400.0


class Ask:
    """Sends requests to one company. timeout: seconds, where a request says nothing else. tells: the company
    is told that it has so long, and says itself when that was not enough."""

    def __init__(self, address: str, timeout: float, *, tells: bool = False) -> None:
        self._address = address
        self._timeout = timeout
        self._tells = tells
        self.sent = False
        """Whether an order has been sent, which goes on whoever waits for its answer."""

    def __call__(
        self,
        request: Document,
        more: Callable[[Document], None] | None = None,
        *,
        timeout: float | None = None,
    ) -> Document:
        """The answer; `more` sees what is streamed before it, else progress is shown on stderr."""
        seconds = self._timeout if timeout is None else timeout
        if self._tells:
            request, seconds, self.sent = {"timeout": seconds, **request}, seconds + GRACE, True
        return admin.ask(self._address, request, more or _progress, timeout=seconds)


def _progress(reply: Document) -> None:
    """How far something has come."""
    if "progress" in reply:
        actor = f"{reply['actor']}: " if "actor" in reply else ""
        click.echo(f"{actor}{reply['progress']}", err=True)


def administers(
    command: Callable[..., None], *, seconds: float = 10.0, tells: bool = False
) -> Callable[..., None]:
    """Options `--name`, `--socket` and `--timeout`; the command's first argument becomes its `Ask`.
    seconds: to wait for an answer, where nobody says otherwise. tells: see Ask.

    A company that is not there, refuses or does not answer ends the command with a sentence on stderr
    and the exit code for it.
    """

    @click.option(
        "--name",
        default="troupe",
        show_default=True,
        envvar="TROUPE_NAME",
        shell_complete=companies,
        help="Name of the company.",
    )
    @click.option("--socket", default="", help="Its admin socket, if it was started with --socket.")
    @click.option(
        "--timeout",
        type=click.FloatRange(0.1, LONGEST),
        default=seconds,
        show_default=True,
        help="Seconds that it may take.",
    )
    @functools.wraps(command)
    def wrapped(*arguments: Any, name: str, socket: str, timeout: float, **options: Any) -> None:
        ask = Ask(admin.address(name, socket), timeout, tells=tells)
        try:
            command(ask, *arguments, **options)
        except admin.Unreachable as error:
            fail(str(error), UNREACHABLE)
        except VerbError as error:
            fail(str(error), EXIT_CODES.get(error.code, FAILED))
        except TimeoutError as error:
            fail(str(error), TIMEOUT)
        except KeyboardInterrupt:
            if ask.sent:
                fail("interrupted; the company goes on with what it was asked.", INTERRUPTED)
            sys.exit(INTERRUPTED)

    return wrapped


orders = functools.partial(administers, seconds=60.0, tells=True)
"""Of what actors are ordered to do."""
patient = functools.partial(administers, seconds=600.0, tells=True)
"""Of what takes as long as requests run, or as weights are read."""


def yes_option(command: Callable[..., None]) -> Callable[..., None]:
    """The `-y` option of what cannot be undone."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)


def on_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty()


def confirmed(question: str, yes: bool) -> None:
    """Ask on the terminal before what cannot be undone; elsewhere `-y` is needed."""
    if yes:
        return
    if not on_terminal():
        fail("this needs -y where there is no terminal to ask on.", USAGE)
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)
        sys.exit(INTERRUPTED)
    if not agreed:
        fail("nothing was done.", FAILED)


def fail(sentence: str, code: int) -> None:
    """Say why on stderr and exit."""
    click.echo(f"actorctl: {sentence}", err=True)
    sys.exit(code)
