"""`actorctl weights ...`: what the model computes with, changed while it serves."""

from __future__ import annotations

import pathlib

import click

from protocols.weights import Mode
from tools.actorctl.output import facts, output_option
from tools.actorctl.target import Ask, patient

_mode = click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.KEEP.value,
    show_default=True,
    help="What becomes of running requests: they go on under the new weights, end first, or end at once.",
)


@click.group()
def weights() -> None:
    """Look at the weights that serve, and change them."""


@weights.command()
@click.option("--verify", is_flag=True, help="Read them in the memory of every executor, and compare.")
@output_option
@patient
def info(ask: Ask, verify: bool, output: str) -> None:
    """Which version serves, and where it comes from."""
    reply = ask({"verb": "weights.info", "verify": verify})
    if output in ("table", "wide"):
        reply = {**reply, "sources": "\n".join(reply["sources"])}
        if verify:
            reply |= {"verified": ", ".join(reply["verified"]), "tensors": len(reply["tensors"])}
    facts(reply, output, reply["version"])


@weights.command()
@click.argument("source", type=click.Path(path_type=pathlib.Path))
@click.option("--version", default=None, help="What to call them.  [default: a number]")
@_mode
@click.option("--dry-run", is_flag=True, help="Only see whether they fit, without reading their numbers.")
@click.option("--allow-nonfinite", is_flag=True, help="Also where numbers are infinite or NaN.")
@output_option
@patient
def update(
    ask: Ask,
    source: pathlib.Path,
    version: str | None,
    mode: str,
    dry_run: bool,
    allow_nonfinite: bool,
    output: str,
) -> None:
    """Serve the checkpoint SOURCE. A directory or a .safetensors file, of all tensors or of some."""
    request = {
        "verb": "weights.update",
        "source": str(source.absolute()),
        "version": version,
        "mode": mode,
        "dry_run": dry_run,
        "allow_nonfinite": allow_nonfinite,
    }
    reply = ask(request)
    facts(reply, output, reply["version"])


@weights.command()
@_mode
@output_option
@patient
def rollback(ask: Ask, mode: str, output: str) -> None:
    """Serve again what served before the last change."""
    reply = ask({"verb": "weights.rollback", "mode": mode})
    facts(reply, output, reply["version"])


@weights.command()
@click.argument("tensor")
@click.option("--count", type=click.IntRange(1, 10_000), default=8, show_default=True, help="How many.")
@output_option
@patient
def get(ask: Ask, tensor: str, count: int, output: str) -> None:
    """The first numbers of TENSOR, by its name in a checkpoint."""
    reply = ask({"verb": "weights.get", "name": tensor, "count": count})
    if output in ("table", "wide"):
        numbers = " ".join(f"{value:.6g}" for value in reply["values"])
        reply = {**reply, "shape": "x".join(map(str, reply["shape"])), "values": numbers}
    facts(reply, output, tensor)
