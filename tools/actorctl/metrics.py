"""`actorctl metrics`: what `/metrics` tells Prometheus."""

from __future__ import annotations

import click

from tools.actorctl.target import Ask, administers


@click.command()
@administers
def metrics(ask: Ask) -> None:
    """Print the company's metrics in Prometheus's text format."""
    click.echo(ask({"verb": "metrics"})["text"], nl=False)
