"""`python -m tools.chaos [failpoints|total|soak|weights|adapters]`: torment a company, check it all.

Without a command: random kills, stops and double kills while clients stream.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import click

from protocols.config import Speculate
from tools.chaos.adapters import adapters
from tools.chaos.failpoints import failpoints
from tools.chaos.report import draw
from tools.chaos.siege import random_faults
from tools.chaos.soak import soak
from tools.chaos.total import total
from tools.chaos.weights import weights


@click.group(invoke_without_command=True)
@click.option("--oracle", type=click.Choice(["hash", "model"]), default="hash", show_default=True)
@click.option("--model", default="", help="Model directory; the demo model by default.")
@click.option("--streams", default=64, show_default=True, help="Clients at once.")
@click.option("--requests", "count", default=64, show_default=True, help="Different requests; they repeat.")
@click.option("--tokens", default=160, show_default=True, help="Tokens of an answer at most.")
@click.option("--faults", default=100, show_default=True)
@click.option("--interval", default=0.5, show_default=True, help="Mean seconds between faults.")
@click.option("--victims", default="executor,scheduler,tokenizer,frontend", show_default=True)
@click.option("--kinds", default="kill=1", show_default=True, help="Weights, e.g. kill=1,stop=0.2,double=0.3")
@click.option("--step-ms", default=8.0, show_default=True, help="Step time of the hash oracle.")
@click.option("--dp", default=1, show_default=True)
@click.option("--speculate", type=click.Choice([each.value for each in Speculate]), default="off")
@click.option("--seed", default=0, show_default=True)
@click.option("--picture", type=click.Path(path_type=pathlib.Path), help="Write the histogram here.")
@click.pass_context
def main(context: click.Context, /, picture: pathlib.Path | None, **options: Any) -> None:
    """Kill actors while clients stream. Exits 1 unless every answer is exact and nothing is left behind."""
    if context.invoked_subcommand is not None:
        return
    report = random_faults(**options)
    click.echo("\n".join(report.lines()))
    if picture is not None:
        draw(report.pauses, picture)
    sys.exit(not report.clean)


main.add_command(failpoints)
main.add_command(total)
main.add_command(soak)
main.add_command(weights)
main.add_command(adapters)

if __name__ == "__main__":
    main()
