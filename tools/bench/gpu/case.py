"""One case in a process of its own: `python -m tools.bench.gpu.case WISH`, started by the command.

Only what its section needs is imported, so that what is not installed costs nothing but the sections that
need it.
"""

from __future__ import annotations

import importlib
import pathlib
import sys
import traceback
from typing import Any

import click
import msgspec

from tools.bench.gpu.findings import Findings, told


class Wish(msgspec.Struct, frozen=True):
    """section, of: see `Case`. folder: for models; findings: file for what is found; traces: where traces go,
    "" for nowhere. rehearsal: all of it in a moment, on any device, with figures that mean nothing."""

    section: str
    of: str
    device: str
    folder: str
    findings: str
    traces: str
    rehearsal: bool


def run(wish: Wish) -> None:
    """Everything that the wish's section finds goes to its file."""
    findings = Findings(pathlib.Path(wish.findings), _tell, lambda: _broken(wish.device))
    try:
        sections = importlib.import_module("tools.bench.gpu.sections")
        sections.SECTIONS[wish.section](sections.Bench(wish, findings), wish.of)
    except Exception as error:
        findings.put(told(error), "failed")
        findings.put(traceback.format_exc().splitlines()[-12:], "where")


def _broken(device: str) -> bool:
    """Whether every further call would fail, as after an access to memory that is not there."""
    import torch

    if device == "cpu":
        return False
    try:
        torch.cuda.synchronize(device)
    except Exception:
        return True
    return False


def _tell(title: str, figures: Any) -> None:
    click.echo(f"  {title}: {msgspec.json.encode(figures).decode()}"[:400])


if __name__ == "__main__":
    run(msgspec.json.decode(sys.argv[1].encode(), type=Wish))
