"""How actorctl prints: `table` and `wide` for people, `json`, `yaml` and `name` for programs.

Data goes to stdout, everything else to stderr. Colours only on a terminal and without NO_COLOR.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

INTERRUPTED = 130
FORMATS = ("table", "wide", "json", "yaml", "name")

Row = Mapping[str, Any]
Heading = tuple[str, str]
"""(key of a row, title of its column)."""


def output_option(command: Callable[..., None]) -> Callable[..., None]:
    """The `-o` option."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="Output format.",
    )(command)


def show(
    document: Mapping[str, Any],
    rows: Sequence[Row],
    output: str,
    *,
    headings: Sequence[Heading],
    wide: Sequence[Heading] = (),
) -> None:
    """Print `document` in a machine format, or `rows` as a table; `name` prints their names."""
    match output:
        case "json":
            click.echo(json.dumps(document, indent=2))
        case "yaml":
            click.echo(yaml.safe_dump(document, sort_keys=False), nl=False)
        case "name":
            for row in rows:
                click.echo(row["name"])
        case "wide":
            print_table(rows, [*headings, *wide])
        case _:
            print_table(rows, headings)


def facts(document: Mapping[str, Any], output: str, name: str = "") -> None:
    """Print one thing: a line for each of its fields. `name`: what `-o name` prints."""
    if output == "name":
        click.echo(name)
        return
    rows = [{"name": key, "value": value} for key, value in document.items()]
    show(document, rows, output, headings=(("name", "FIELD"), ("value", "VALUE")))


def done(document: Mapping[str, Any], output: str, name: str, sentence: str) -> None:
    """What has been done: a sentence on stderr for people, else the document, or `name` for `-o name`."""
    if output in ("table", "wide"):
        click.echo(sentence, err=True)
    else:
        facts(document, output, name)


def watch_option(command: Callable[..., None]) -> Callable[..., None]:
    """The `-w` option: look again and again; None for once."""
    return click.option(
        "-w",
        "--watch",
        is_flag=False,
        flag_value="2",
        metavar="[SECONDS]",
        type=click.FloatRange(0.1, 3600),
        help="Look again every so many seconds, 2 where none are given, until interrupted.",
    )(command)


def watching(look: Callable[[], None], seconds: float | None) -> None:
    """Look once, or again every `seconds` until interrupted: then the exit code is 130."""
    try:
        while True:
            look()
            if not seconds:
                return
            time.sleep(seconds)
            if sys.stdout.isatty():
                click.clear()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def print_table(rows: Sequence[Row], headings: Sequence[Heading]) -> None:
    """The rows under their headings, without borders. Nothing is cut: a narrow terminal wraps long lines."""
    Console(width=4096, no_color=None if sys.stdout.isatty() else True).print(make_table(rows, headings))


def make_table(rows: Sequence[Row], headings: Sequence[Heading]) -> Table:
    """A rich table: numbers to the right, everything else to the left."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key, title in headings:
        values = [value for row in rows if (value := row.get(key)) is not None]
        numeric = bool(values) and all(isinstance(value, int | float) for value in values)
        table.add_column(title, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key, _ in headings))
    return table


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.1g}" if 0 < abs(value) < 0.05 else f"{value:.1f}"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(_cell, value)) or "-"
        case "":
            return "-"
        case _:
            return str(value)
