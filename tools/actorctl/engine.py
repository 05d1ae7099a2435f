"""`actorctl engine ...`: pause and resume generation, and what else concerns the engine as a whole."""

from __future__ import annotations

import click

from protocols.orders import PauseMode
from tools.actorctl.output import facts, output_option
from tools.actorctl.target import Ask, administers


@click.group()
def engine() -> None:
    """Pause and resume the engine, flush its cache."""


@engine.command()
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in PauseMode]),
    default=PauseMode.IN_PLACE.value,
    show_default=True,
    help="What becomes of running requests: ended, queued again, stopped where they are, or finished.",
)
@output_option
@administers
def pause(ask: Ask, mode: str, output: str) -> None:
    """Launch no more steps; new requests wait."""
    facts(ask({"verb": "engine.pause", "mode": mode}), output, mode)


@engine.command()
@output_option
@administers
def resume(ask: Ask, output: str) -> None:
    """Generate again."""
    facts(ask({"verb": "engine.resume"}), output, "running")


@engine.command("flush-cache")
@output_option
@administers
def flush_cache(ask: Ask, output: str) -> None:
    """Forget every cached prefix that no running request uses."""
    facts(ask({"verb": "engine.flush-cache"}), output, "flushed")
