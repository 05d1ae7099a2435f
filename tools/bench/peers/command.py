"""`python -m tools.bench peers`: Troupe beside the other engines that are installed, in one run."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import click

from tools.bench.peers import picture, report
from tools.bench.peers.cases import CASES
from tools.bench.peers.engines import ENGINES, ENVIRONMENTS, install
from tools.bench.peers.measure import Figures, Plan, measure
from tools.bench.peers.models import SHAPES, default_cache

PEERS = pathlib.Path(__file__).resolve().parents[3] / ".venv-peers"
_PATH = click.Path(path_type=pathlib.Path)


class Names(click.ParamType[list[str]]):
    """Some of the known names, in the order of those, joined by commas."""

    name = "names"

    def __init__(self, known: list[str]) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """The names; fails on one that is not known."""
        if isinstance(value, list):
            return value
        chosen = value.split(",")
        for name in chosen:
            if name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}.", param, ctx)
        return [name for name in self.known if name in chosen]


@click.command()
@click.option("--models", type=Names(list(SHAPES)), default=",".join(SHAPES), show_default=True)
@click.option("--cases", type=Names(list(CASES)), default=",".join(CASES), show_default=True)
@click.option(
    "--only",
    type=Names([engine.name for engine in ENGINES]),
    default=",".join(engine.name for engine in ENGINES),
    show_default=True,
    help="Engines to measure, of those that are installed.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of every peer. [default: one a core]")
@click.option(
    "--peers", type=_PATH, default=PEERS, envvar="TROUPE_PEERS", help="Where the peers' environments are."
)
@click.option("--cache", type=_PATH, help="Where the models are kept. [default: the user's cache]")
@click.option(
    "--install",
    "wanted",
    type=click.Choice(list(ENVIRONMENTS)),
    multiple=True,
    help="Only make this peer's environment; repeat for several.",
)
@click.option("--json", "json_path", type=_PATH, help="Write the figures here, after every round.")
@click.option("--picture", "picture_path", type=_PATH, help="Draw the figures here (png, svg, pdf).")
@click.option(
    "--from", "source", type=click.Path(exists=True, path_type=pathlib.Path), help="Figures taken earlier."
)
@click.argument("options", nargs=-1)
def peers(
    wanted: tuple[str, ...],
    source: pathlib.Path | None,
    json_path: pathlib.Path | None,
    picture_path: pathlib.Path | None,
    **chosen: Any,
) -> None:
    """Troupe beside vLLM, llama.cpp and transformers. OPTIONS after `--` go to `actorctl serve`."""
    if wanted:
        for name in wanted:
            install(name, chosen["peers"])
        return
    figures = json.loads(source.read_text()) if source else measure(_plan(json_path, **chosen))
    for line in report.lines(figures):
        click.echo(line)
    if picture_path is not None:
        picture.draw(figures, picture_path)


def _plan(json_path: pathlib.Path | None, **chosen: Any) -> Plan:
    engines = [engine for engine in ENGINES if engine.name in chosen["only"]]
    missing = [engine.name for engine in engines if not engine.installed(chosen["peers"])]
    if missing:
        click.echo(f"not installed in {chosen['peers']}: {', '.join(missing)}", err=True)

    def keep(figures: Figures) -> None:
        if json_path is not None:
            json_path.write_text(json.dumps(figures, indent=1))

    return Plan(
        models=chosen["models"],
        cases=[CASES[name] for name in chosen["cases"]],
        engines=[engine for engine in engines if engine.name not in missing],
        rounds=chosen["rounds"],
        peers=chosen["peers"].absolute(),
        cache=chosen["cache"] or default_cache(),
        threads=chosen["threads"] or len(os.sched_getaffinity(0)),
        options=chosen["options"],
        say=lambda text: click.echo(text, err=True),
        keep=keep,
    )
