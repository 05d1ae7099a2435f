"""`actorctl status`: the company and its actors, as its board shows them."""

from __future__ import annotations

import sys
from typing import Any

import click

from tools.actorctl.output import Heading, output_option, show, watch_option, watching
from tools.actorctl.target import OK, UNHEALTHY, Ask, administers

HEADINGS: tuple[Heading, ...] = (
    ("name", "NAME"),
    ("state", "STATE"),
    ("pid", "PID"),
    ("incarnation", "INCARNATION"),
    ("restarts", "RESTARTS"),
    ("uptime", "UPTIME"),
)
WIDE: tuple[Heading, ...] = (
    ("kind", "KIND"),
    ("inbox_bytes", "INBOX"),
    ("messages_in", "IN"),
    ("messages_out", "OUT"),
    ("running", "RUNNING"),
    ("waiting", "WAITING"),
    ("pages_free", "FREE"),
    ("pages_cached", "CACHED"),
    ("pages_owned", "OWNED"),
    ("drafted_total", "GUESSED"),
    ("accepted_total", "RIGHT"),
)


@click.command()
@watch_option
@output_option
@administers
def status(ask: Ask, output: str, watch: float | None) -> None:
    """Show the company's state and its actors. Exits 3 unless every actor is ready."""
    state = ""

    def look() -> None:
        nonlocal state
        document = ask({"verb": "status"})
        state = document["state"]
        if output in ("table", "wide"):
            click.echo(f"{_headline(document)}\n")
        show(document, actor_rows(document), output, headings=HEADINGS, wide=WIDE)

    watching(look, watch)
    sys.exit(OK if state == "ready" else UNHEALTHY)


def _headline(document: dict[str, Any]) -> str:
    """What is served where, and what an administrator has stopped."""
    standing = document["standing"]
    stopped = f" (paused: {standing['paused']})" if standing["paused"] else ""
    stopped += " (draining)" if standing["draining"] else ""
    stopped += f" (released: {', '.join(standing['released'])})" if standing["released"] else ""
    return (
        f"{document['name']}: {document['state']}{stopped}, serving {document['model']} at {document['url']}"
    )


def actor_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The actors of a status document with their uptime in words."""
    return [{**actor, "uptime": duration(actor["uptime_seconds"])} for actor in document["actors"]]


def duration(seconds: float) -> str:
    """12.3s, 4m05s, 3h12m, 5d02h."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"
