"""`python -m tools.bench gpu`: first whether it is right on this device, then how fast, then JSON."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import tempfile
from typing import Any

import click
import torch

from gpu.device import choose_device
from tools.bench.gpu import exactness, measure
from tools.bench.gpu.machine import Machine, describe
from tools.bench.gpu.shapes import SHAPES

_BACKENDS = ("auto", "triton", "flash", "flash,triton", "flashinfer", "torch")


@click.command()
@click.option("--device", default="auto", show_default=True, help="cuda, cuda:<index> or cpu.")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=click.Choice(list(SHAPES)),
    help="Model to measure; repeat for several. [default: 0.6b, 8b, 14b]",
)
@click.option("--smallest", is_flag=True, help="A moment's run that shows that all of this works.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="transformers beside it.")
@click.option("--json", "path", type=click.Path(path_type=pathlib.Path), help="Write everything here.")
def gpu(device: str, shapes: tuple[str, ...], smallest: bool, peers: bool, path: pathlib.Path | None) -> None:
    """A GPU: exact against transformers, then decode, prefill, ablations and peers.

    Exits with 1, before anything is timed, when a token is wrong.
    """
    where = choose_device(device)
    if where.type != "cuda" and not smallest:
        raise click.UsageError("there is no GPU here; --smallest runs on a CPU.")
    report: dict[str, Any] = {"machine": dataclasses.asdict(describe(where, smallest=smallest))}
    _tell("machine", report["machine"])
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder)
        verdicts = _check(directory, where, smallest=smallest)
        report["exactness"] = [dataclasses.asdict(each) | {"right": each.right} for each in verdicts]
        _save(report, path)
        if not all(each.right for each in verdicts):
            sys.exit(1)
        sizes = measure.SMALLEST if smallest else measure.FULL
        for shape in shapes or (("smallest",) if smallest else ("0.6b", "8b", "14b")):
            report[shape] = _measure(directory / shape, shape, where, sizes, report)
            _save(report, path)
            if peers and shape in ("smallest", "0.6b"):
                report[shape]["transformers"] = measure.transformers_beside(directory / shape, sizes, where)
                _tell(f"{shape}: transformers", report[shape]["transformers"])
                _save(report, path)


def _check(directory: pathlib.Path, device: torch.device, *, smallest: bool) -> list[exactness.Verdict]:
    verdicts = []
    names = list(exactness.MODELS)[:: 3 if smallest else 1]
    backends = ("auto",) if device.type == "cpu" else _BACKENDS
    for name in names:
        model = exactness.reference(directory / name, name)
        for dtype in ("float32",) if device.type == "cpu" else ("float32", "bfloat16"):
            for backend in backends:
                for graphs in ("off",) if device.type == "cpu" else ("off", "auto"):
                    verdict = exactness.check(
                        directory / name,
                        model,
                        name,
                        device,
                        dtype=dtype,
                        backend=backend,
                        graphs=graphs,
                        smallest=smallest,
                    )
                    verdicts.append(verdict)
                    _tell("exact" if verdict.right else "WRONG", dataclasses.asdict(verdict))
    return verdicts


def _measure(
    directory: pathlib.Path, shape: str, device: torch.device, sizes: measure.Sizes, report: dict[str, Any]
) -> dict[str, Any]:
    subject = measure.Subject(directory, shape, device, Machine(**report["machine"]), sizes)
    found: dict[str, Any] = {"decode": {}, "prefill": {}}
    with subject.executor() as (_, driver):
        for batch in sizes.batches:
            found["decode"][str(batch)] = subject.decode(driver, batch)
            _tell(f"{shape}: decode of {batch}", found["decode"][str(batch)])
        for length in sizes.prompts:
            found["prefill"][str(length)] = subject.prefill(driver, length)
            _tell(f"{shape}: prefill of {length}", found["prefill"][str(length)])
        found["workload"] = subject.workload(driver)
        _tell(f"{shape}: workload", found["workload"])
    found["ablations"] = subject.ablations()
    for title, figures in found["ablations"].items():
        _tell(f"{shape}: {title}", figures)
    return found


def _tell(title: str, figures: dict[str, Any]) -> None:
    click.echo(f"{title}: {json.dumps(figures)}")


def _save(report: dict[str, Any], path: pathlib.Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")
