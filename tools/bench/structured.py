"""`python -m tools.bench structured`: what it costs to hold answers to a shape.

One company, 16 clients over HTTP: in each round the same prompts are answered freely and in each of a few
shapes, all with the same number of tokens, as none of the shapes may end before. The figure of a shape is its
tokens a second divided by the free ones of the same round.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import click

from tools.actorctl.serve import DEMO_MODEL
from tools.bench import load
from tools.bench.serve import company, random_prompts, summary
from tools.bench.statistics import spread

_MANY = 1000
_FREE = "free"


def _records(**properties: Any) -> dict[str, Any]:
    """Fields of a request for more objects than anybody waits for."""
    item = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"guided_json": {"type": "array", "items": item, "minItems": _MANY}}


SHAPES: dict[str, dict[str, Any]] = {
    _FREE: {"ignore_eos": True},
    "JSON: free texts, integers and lists": _records(
        name={"type": "string"},
        age={"type": "integer"},
        tags={"type": "array", "items": {"type": "string"}},
    ),
    "JSON: bounded texts, ranges and enumerations": _records(
        name={"type": "string", "minLength": 4, "maxLength": 20},
        age={"type": "integer", "minimum": 0, "maximum": 120},
        tags={"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
    ),
    "a regular expression": {"guided_regex": f"([A-Z][a-z]{{1,12}} [0-9]{{1,4}}, ){{{_MANY}}}"},
}
"""Name -> fields of a request whose answer goes on for ever."""


def measure(
    model: pathlib.Path, clients: int, requests: int, output: int, repeats: int, options: tuple[str, ...]
) -> list[dict[str, float]]:
    """Tokens a second for each shape, a round each."""
    arguments = [str(model), "--served-name", "bench", "--max-running", str(clients), *options]
    plain = load.Workload("bench", clients, random_prompts(requests, 48), output)
    with company(arguments) as address:

        def rate(fields: Mapping[str, Any]) -> float:
            workload = dataclasses.replace(plain, fields={"temperature": 1.0, "ignore_eos": False, **fields})
            run = load.run(address.host, address.port, workload, load.HttpDialogue)
            assert all(receipt.tokens == output for receipt in run.receipts), "an answer ended early"
            return float(summary(run)["tokens_per_s"])

        rounds = [{name: rate(fields) for name, fields in SHAPES.items()} for _ in range(repeats + 1)]
    return rounds[1:]


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=pathlib.Path), default=DEMO_MODEL)
@click.option("--clients", default=16, show_default=True)
@click.option("--requests", default=32, show_default=True, help="Requests of a run.")
@click.option("--output", default=128, show_default=True, help="Tokens of an answer.")
@click.option("--repeats", default=5, show_default=True)
@click.argument("options", nargs=-1)
def structured(**case: Any) -> None:
    """Tokens a second with a shape, beside free ones. OPTIONS after `--` go to `actorctl serve`."""
    rounds = measure(**case)
    click.echo("| answers | tok/s | ÷ free |\n|---|---|---|")
    for name in SHAPES:
        rates = spread([round_[name] for round_ in rounds])
        ratios = spread([round_[name] / round_[_FREE] for round_ in rounds])
        click.echo(f"| {name} | {rates} | {'' if name == _FREE else ratios} |")
