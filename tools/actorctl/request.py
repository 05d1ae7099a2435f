"""`actorctl request ...`: the open requests, and ending them."""

from __future__ import annotations

from typing import Any

import click

from tools.actorctl import completing
from tools.actorctl.output import Heading, facts, output_option, show, watch_option, watching
from tools.actorctl.target import USAGE, Ask, confirmed, fail, orders, yes_option

HEADINGS: tuple[Heading, ...] = (
    ("id", "ID"),
    ("state", "STATE"),
    ("prompt_tokens", "PROMPT"),
    ("output_tokens", "OUTPUT"),
    ("max_tokens", "MOST"),
    ("age_seconds", "AGE"),
)
WIDE: tuple[Heading, ...] = (
    ("scheduler", "SCHEDULER"),
    ("choice", "CHOICE"),
    ("cached_tokens", "CACHED"),
    ("priority", "PRIORITY"),
    ("trace_id", "TRACE"),
)


@click.group()
def request() -> None:
    """List the open requests, look at one, end some."""


@request.command("list")
@watch_option
@output_option
@orders
def list_requests(ask: Ask, output: str, watch: float | None) -> None:
    """Every open request, as its scheduler knows it."""

    def look() -> None:
        document = ask({"verb": "request.list"})
        rows = [{**each, "name": each["id"]} for each in document["requests"]]
        show(document, rows, output, headings=HEADINGS, wide=WIDE)

    watching(look, watch)


@request.command()
@click.argument("request_id", metavar="ID", shell_complete=completing.requests)
@output_option
@orders
def get(ask: Ask, request_id: str, output: str) -> None:
    """One open request.

    ID is as `request list` shows it, that of an answer (resp_…, chatcmpl-…), an x-request-id or a trace id.
    """
    document = ask({"verb": "request.get", "ids": [request_id]})
    facts(document, output, document["id"])


@request.command()
@click.argument("ids", nargs=-1, metavar="ID...", shell_complete=completing.requests)
@click.option("--all", "everything", is_flag=True, help="All that are open.")
@yes_option
@output_option
@orders
def abort(ask: Ask, ids: tuple[str, ...], everything: bool, yes: bool, output: str) -> None:
    """End requests with the tokens they have; their clients are told."""
    if bool(ids) == everything:
        fail("abort needs the ids of requests, or --all.", USAGE)
    confirmed("End every open request?" if everything else f"End {', '.join(ids)}?", yes)
    document: dict[str, Any] = ask({"verb": "request.abort", "ids": list(ids), "all": everything})
    rows = [{"name": each, "state": "aborted"} for each in document["aborted"]]
    rows += [{"name": each, "state": "not found"} for each in document["not_found"]]
    show(document, rows, output, headings=(("name", "ID"), ("state", "STATE")))
