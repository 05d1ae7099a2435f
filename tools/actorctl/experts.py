"""`actorctl experts ...`: how the rows of a mixture-of-experts model spread over its experts."""

from __future__ import annotations

import click

from tools.actorctl.output import Heading, facts, output_option, show
from tools.actorctl.target import Ask, orders

HEADINGS: tuple[Heading, ...] = (
    ("name", "LAYER"),
    ("total", "ROWS"),
    ("least", "LEAST"),
    ("most", "MOST"),
    ("busiest", "BUSIEST"),
)


@click.group()
def experts() -> None:
    """Count which experts the router chooses."""


@experts.command()
@output_option
@orders
def start(ask: Ask, output: str) -> None:
    """Count from now on."""
    facts(ask({"verb": "experts.start"}), output, "experts")


@experts.command()
@output_option
@orders
def stop(ask: Ask, output: str) -> None:
    """Count no more; what was counted can still be dumped."""
    facts(ask({"verb": "experts.stop"}), output, "experts")


@experts.command()
@output_option
@orders
def dump(ask: Ask, output: str) -> None:
    """The rows that each expert got, layer by layer. -o json has all of them; they are counted anew."""
    document = ask({"verb": "experts.dump"})
    rows = [
        {
            "name": str(each["layer"]),
            "total": sum(each["rows"]),
            "least": min(each["rows"]),
            "most": max(each["rows"]),
            "busiest": each["rows"].index(max(each["rows"])),
        }
        for each in document["layers"]
    ]
    show(document, rows, output, headings=HEADINGS)
