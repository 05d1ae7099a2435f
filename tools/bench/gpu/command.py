"""`python -m tools.bench gpu`: is it right on this device, and how fast; JSON after each section."""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
import time
import traceback
from typing import Any

import click
import torch

from gpu.device import choose_device
from tools.bench.gpu.sections import SECTIONS, Bench
from tools.bench.gpu.shapes import SHAPES


@click.command()
@click.option("--device", default="auto", show_default=True, help="cuda, cuda:<index> or cpu.")
@click.option(
    "--section",
    "sections",
    multiple=True,
    type=click.Choice(list(SECTIONS)),
    help="[default: all]",
)
@click.option(
    "--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), help="Instead of each section's own."
)
@click.option("--rehearse", is_flag=True, help="All of it in a moment, on any device: shows that it works.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="transformers beside it.")
@click.option("--minutes", default=9.0, show_default=True, help="Begin no section after so many.")
@click.option("--json", "path", type=click.Path(path_type=pathlib.Path), help="Write everything here.")
def gpu(
    device: str,
    sections: tuple[str, ...],
    shapes: tuple[str, ...],
    rehearse: bool,
    peers: bool,
    minutes: float,
    path: pathlib.Path | None,
) -> None:
    """A GPU: exact against transformers, then speed, budget, ablations, peers, a company served and killed.

    A section that fails is told, and the next one begins; exits with 1 when one failed or anything was wrong.
    """
    where = choose_device(device)
    if where.type != "cuda" and not rehearse:
        raise click.UsageError("there is no GPU here; --rehearse runs on a CPU.")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    started, report, failed = time.monotonic(), dict[str, Any](), False
    with tempfile.TemporaryDirectory() as folder:
        traces = None if path is None else path.parent
        bench = Bench(pathlib.Path(folder), where, rehearse, peers, traces, _tell)
        for name in sections or SECTIONS:
            own = ("smallest",) if rehearse else shapes or SECTIONS[name][1]
            for shape in own if SECTIONS[name][1] != ("",) else ("",):
                title = f"{name} {shape}".strip()
                if time.monotonic() - started > 60 * minutes:
                    report[title] = {"skipped": f"{minutes:g} minutes were over"}
                else:
                    report[title] = _section(bench, name, shape)
                _tell(title, report[title])
                failed |= wrong(report[title])
                if path is not None:
                    path.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(1 if failed else 0)


def _section(bench: Bench, name: str, shape: str) -> dict[str, Any]:
    """What a section found and how long it took; whatever it raised is its result."""
    started = time.monotonic()
    try:
        found = SECTIONS[name][0](bench, shape)
    except Exception as error:
        bench.forget()
        found = {
            "failed": f"{type(error).__name__}: {error}",
            "where": traceback.format_exc().splitlines()[-12:],
        }
    return found | {"took_seconds": round(time.monotonic() - started, 1)}


def wrong(found: Any) -> bool:
    """Whether anything in a report failed, or was found not right."""
    if not isinstance(found, dict):
        return False
    return "failed" in found or found.get("right") is False or any(map(wrong, found.values()))


def _tell(title: str, figures: Any) -> None:
    click.echo(f"{title}: {json.dumps(figures)}")
