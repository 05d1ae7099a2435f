"""`actorctl profile ...`: what the executors' steps do, for https://ui.perfetto.dev."""

from __future__ import annotations

import pathlib
from typing import Any

import click

from protocols.orders import Activity
from tools.actorctl import completing
from tools.actorctl.output import output_option, show
from tools.actorctl.target import Ask, orders

_HEADINGS = (("name", "EXECUTOR"), ("steps", "STEPS"), ("file", "FILE"))
_activities = click.Choice([each.value for each in Activity], case_sensitive=False)
_FOLDER = click.Path(file_okay=False, path_type=pathlib.Path)


@click.group()
def profile() -> None:
    """Record what executors do, step by step."""


@profile.command()
@click.option(
    "--actor", "actors", multiple=True, shell_complete=completing.actors, help="Only this executor."
)
@click.option("--steps", type=click.IntRange(1), help="Stop after so many; 1000 unless said.")
@click.option("--output-dir", type=_FOLDER, help="Where a directory for the files is made; in $TMPDIR else.")
@click.option("--activity", "activities", multiple=True, type=_activities, help="Only this one's work.")
@click.option("--with-stack", is_flag=True, help="With the Python frames of each operation.")
@click.option("--record-shapes", is_flag=True, help="With the shapes of its tensors.")
@output_option
@orders
def start(
    ask: Ask,
    actors: tuple[str, ...],
    steps: int | None,
    output_dir: pathlib.Path | None,
    activities: tuple[str, ...],
    with_stack: bool,
    record_shapes: bool,
    output: str,
) -> None:
    """Begin to record; tell the files to come."""
    wished = {
        "actors": list(actors),
        "steps": steps,
        "folder": None if output_dir is None else str(output_dir.expanduser().resolve()),
        "activities": list(activities),
        "stacks": with_stack,
        "shapes": record_shapes,
    }
    reply = ask({"verb": "profile.start", **wished})
    _show(reply, dict.fromkeys(reply["files"], int(reply["steps"])), output)


@profile.command()
@output_option
@orders
def stop(ask: Ask, output: str) -> None:
    """Write what was recorded; tell the files."""
    reply = ask({"verb": "profile.stop"})
    _show(reply, reply["steps"], output)
    for sentence in reply["lost"].values():
        click.echo(f"lost: {sentence}", err=True)


def _show(reply: dict[str, Any], steps: dict[str, int], output: str) -> None:
    rows = [{"name": name, "steps": steps[name], "file": file} for name, file in reply["files"].items()]
    show(reply, rows, output, headings=_HEADINGS)
