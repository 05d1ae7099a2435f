"""`actorctl top`: the board, live: rates, load and pages of every actor."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tools.actorctl.output import FORMATS, Heading, make_table, output_option, show
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


@click.command()
@output_option
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("-n", "--iterations", type=click.IntRange(min=1), help="Stop after so many looks.")
@administers
def top(ask: Ask, output: str, interval: float, iterations: int | None) -> None:
    """Watch the actors work. On a pipe, or with -o json, one look is printed."""
    console = Console()
    if output != "table" or not console.is_terminal:
        before = ask({"verb": "status"})
        time.sleep(min(interval, 1.0))
        _print_once(before, ask({"verb": "status"}), min(interval, 1.0), output)
        return
    _watch(ask, console, interval, iterations)


def _print_once(before: dict[str, Any], now: dict[str, Any], seconds: float, output: str) -> None:
    rows = rates(before, now, seconds)
    assert output in FORMATS
    show({**now, "actors": rows}, rows, output, headings=_HEADINGS)


def _watch(ask: Ask, console: Console, interval: float, iterations: int | None) -> None:
    before, looked = ask({"verb": "status"}), time.monotonic()
    looks = 0
    with Live(console=console, screen=iterations is None, auto_refresh=False) as live:
        while iterations is None or looks < iterations:
            time.sleep(interval)
            now, at = ask({"verb": "status"}), time.monotonic()
            live.update(_screen(now, rates(before, now, at - looked)), refresh=True)
            before, looked, looks = now, at, looks + 1


def _screen(document: dict[str, Any], rows: list[dict[str, Any]]) -> Group:
    total = sum(row["token_rate"] or 0.0 for row in rows)
    head = (
        f"{document['name']}  {document['state']}  {document['model']}  {document['url']}  {total:.0f} tok/s"
    )
    return Group(Text(head, style="bold"), Text(), make_table(rows, _HEADINGS))


def rates(before: dict[str, Any], now: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """The actors of `now` with rates since `before`, `seconds` earlier. A new incarnation starts at 0."""
    earlier = {actor["name"]: actor for actor in before["actors"]}
    return [_rate(earlier.get(actor["name"], {}), actor, seconds) for actor in now["actors"]]


def _share(part: float, whole: float) -> str | None:
    return f"{100 * part / whole:.0f} %" if whole else None


def _rate(before: dict[str, Any], now: dict[str, Any], seconds: float) -> dict[str, Any]:
    same = before.get("incarnation") == now["incarnation"]

    def per_second(counter: str) -> float:
        grown: int = now[counter] - (before[counter] if same else 0)
        return grown / seconds

    scheduler = now["kind"] == "scheduler"
    used = now["pages_total"] - now["pages_free"]
    return {
        **now,
        "in_rate": per_second("messages_in"),
        "out_rate": per_second("messages_out"),
        "token_rate": per_second("generated_tokens_total") if scheduler else None,
        "running": now["running"] if scheduler else None,
        "waiting": now["waiting"] if scheduler else None,
        "guessed": _share(per_second("accepted_total"), per_second("drafted_total")) if scheduler else None,
        "pages": f"{used}/{now['pages_total']}" if scheduler else None,
        "busy": per_second("step_us_total") / 1e4 if now["kind"] == "executor" else None,
    }
