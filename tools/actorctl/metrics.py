"""`actorctl metrics`: what `/metrics` tells Prometheus."""

from __future__ import annotations

from typing import Any

import click

from tools.actorctl.output import FORMATS, show
from tools.actorctl.target import Ask, administers

TEXT = "prometheus"
_HEADINGS = (("name", "NAME"), ("labels", "LABELS"), ("value", "VALUE"))
_WIDE = (("type", "TYPE"), ("help", "HELP"))


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice([TEXT, *FORMATS]),
    default=TEXT,
    show_default=True,
    help="Prometheus's text, or as everything else.",
)
@administers
def metrics(ask: Ask, output: str) -> None:
    """Print the company's metrics, as `/metrics` does."""
    reply = ask({"verb": "metrics", "families": output != TEXT})
    if output == TEXT:
        click.echo(reply["text"], nl=False)
        return
    families = reply["metrics"]
    rows = families if output == "name" else [row for family in families for row in _rows(family)]
    show(reply, rows, output, headings=_HEADINGS, wide=_WIDE)


def _rows(family: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each sample; of a histogram only how many there were, and their sum."""
    return [
        {
            **family,
            "name": family["name"] + sample["ending"],
            "labels": ",".join(f"{key}={value}" for key, value in sample["labels"].items()),
            "value": sample["value"],
        }
        for sample in family["samples"]
        if sample["ending"] != "_bucket"
    ]
