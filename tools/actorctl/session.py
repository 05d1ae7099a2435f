"""`actorctl session ...`: conversations that the company keeps for its clients."""

from __future__ import annotations

import click

from tools.actorctl.output import Heading, facts, output_option, show
from tools.actorctl.target import Ask, administers

HEADINGS: tuple[Heading, ...] = (
    ("name", "ID"),
    ("requests", "REQUESTS"),
    ("tokens", "TOKENS"),
    ("idle_seconds", "IDLE"),
)
WIDE: tuple[Heading, ...] = (("capacity", "CAPACITY"), ("timeout", "TIMEOUT"), ("owner", "OWNER"))


@click.group()
def session() -> None:
    """Open, close and list sessions."""


@session.command("open")
@click.argument("session_id", metavar="[ID]", default="")
@click.option("--capacity", type=click.IntRange(min=1), help="Tokens that it may hold. [default: 262144]")
@click.option(
    "--idle", type=click.FloatRange(min=1), help="Seconds for which it is kept unused. [default: 3600]"
)
@output_option
@administers
def open_session(ask: Ask, session_id: str, capacity: int | None, idle: float | None, output: str) -> None:
    """Open a session, named ID or as the company likes. Requests name it in session_params."""
    document = ask({"verb": "session.open", "id": session_id, "capacity": capacity, "timeout": idle})
    facts(document, output, document["session_id"])


@session.command()
@click.argument("session_id", metavar="ID")
@output_option
@administers
def close(ask: Ask, session_id: str, output: str) -> None:
    """Forget a session and all that it holds."""
    facts(ask({"verb": "session.close", "id": session_id}), output, session_id)


@session.command("list")
@output_option
@administers
def list_sessions(ask: Ask, output: str) -> None:
    """The sessions that are open."""
    document = ask({"verb": "session.list"})
    show(document, document["sessions"], output, headings=HEADINGS, wide=WIDE)
