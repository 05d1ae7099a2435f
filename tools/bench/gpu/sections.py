"""What `python -m tools.bench.gpu` does, section by section; each in a process of its own."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import torch

from gpu.device import choose_device
from protocols.config import KvCacheDtype, Quantization
from tools.bench.gpu.case import Wish
from tools.bench.gpu.findings import Findings
from tools.bench.gpu.machine import Machine, describe
from tools.bench.gpu.measure import ABLATIONS, FULL, SMALLEST, Sizes, Subject
from tools.bench.gpu.shapes import spec_of, write

EIGHT_BITS: dict[str, dict[str, Any]] = {
    "int8": {"quantization": Quantization.INT8},
    "fp8": {"quantization": Quantization.FP8},
    "fp8, KV too": {"quantization": Quantization.FP8, "kv_cache_dtype": KvCacheDtype.FP8},
}
"""How a model can be kept otherwise."""


class Bench:
    """One case. findings: where everything goes. folder: for models, shared by all cases."""

    def __init__(self, wish: Wish, findings: Findings) -> None:
        self.findings, self.rehearsal = findings, wish.rehearsal
        self.folder, self.device = pathlib.Path(wish.folder), choose_device(wish.device)
        self.traces = pathlib.Path(wish.traces) if wish.traces else None
        self.sizes: Sizes = SMALLEST if wish.rehearsal else FULL
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @functools.cached_property
    def machine(self) -> Machine:
        """What this machine can do, measured once for all cases."""
        path = self.folder / "machine.json"
        if path.exists():
            return Machine(**json.loads(path.read_text()))
        found = describe(self.device, smallest=self.rehearsal)
        path.write_text(json.dumps(dataclasses.asdict(found)))
        return found

    def subject(self, shape: str, **options: Any) -> Subject:
        """A model of the shape in memory; whoever had one before lets go of it first."""
        self.forget()
        folder = self.folder / f"{shape} of zeros"
        return Subject(folder, shape, self.device, self.machine, self.sizes, **options)

    def forget(self) -> None:
        """Free the device's memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def stored(self, shape: str) -> pathlib.Path:
        """A model directory of random weights; the only one there is, since they are large."""
        folder = self.folder / f"{shape} of numbers"
        if not folder.exists():
            for other in self.folder.glob("* of numbers"):
                shutil.rmtree(other)
            unfinished = self.folder / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            write(unfinished, shape, random=True)
            unfinished.rename(folder)
        return folder


def machine(bench: Bench, _: str) -> None:
    """Device, packages, and what they can do at most."""
    bench.findings.piece(lambda: dataclasses.asdict(bench.machine), "facts")


def exact(bench: Bench, model: str) -> None:
    """Tokens against transformers, on every path there is."""
    from tools.bench.gpu import exactness

    directory = bench.folder / model
    reference = exactness.reference(directory, model)
    for path in exactness.paths(model, bench.device):
        check = functools.partial(
            exactness.check, directory, reference, path, bench.device, smallest=bench.rehearsal
        )
        bench.findings.piece(lambda check=check: check().figures(), path.title)  # type: ignore[misc]
        bench.forget()


def kernels(bench: Bench, shape: str) -> None:
    """Kernels against what they stand for."""
    from tools.bench.gpu import kernels

    sizes = kernels.SMALLEST if bench.rehearsal else kernels.FULL
    for name, part in kernels.parts(bench.device, spec_of(shape), bench.machine, sizes).items():
        bench.findings.piece(part, name)


def speed(bench: Bench, shape: str) -> None:
    """Decode steps and prefills as fractions of the roofline."""
    subject, piece = bench.subject(shape), bench.findings.piece
    with subject.executor() as (_, driver):
        piece(subject.tilings, "products")
        for batch in bench.sizes.batches:
            piece(functools.partial(subject.decode, driver, batch), "decode", str(batch))
        for length in bench.sizes.prompts:
            piece(functools.partial(subject.prefill, driver, length), "prefill", str(length))


def steps(bench: Bench, shape: str) -> None:
    """Where the microseconds of a decode step go: a table, and a trace."""
    from tools.bench.gpu import budget

    batch, times, prompt, turns = (2, 2, 8, 5) if bench.rehearsal else (64, 50, 1024, 200)
    path = None if bench.traces is None else bench.traces / f"decode-{shape}.json.gz"
    piece = bench.findings.piece
    with bench.subject(shape).executor() as (executor, _):
        piece(lambda: budget.budget(executor, batch, times, prompt), "budget")
        piece(lambda: budget.elsewhere(executor, batch, times, prompt, turns=turns), "elsewhere")
        executor.release_graphs()
        launched = functools.partial(budget.Decodes, executor, batch, 4, prompt)
        piece(lambda: budget.alone(launched())[0], "launch without graphs")
        piece(lambda: budget.trace(executor, batch, 2, prompt, path), "kernels")


def ablations(bench: Bench, shape: str) -> None:
    """Decodes with one thing changed at a time."""
    piece, subject = bench.findings.piece, bench.subject(shape)
    for title, options in ABLATIONS.items():
        piece(functools.partial(subject.ablation, **options), title)
    del subject
    for title, options in EIGHT_BITS.items():
        piece(lambda kept=options: bench.subject(shape, **kept).ablation(), title)  # type: ignore[misc]


def workload(bench: Bench, shape: str) -> None:
    """Many requests of random lengths."""
    subject = bench.subject(shape)
    with subject.executor(cuda_graphs="auto") as (_, driver):
        bench.findings.piece(lambda: subject.workload(driver), "ours")


def peers(bench: Bench, shape: str) -> None:
    """The same requests through transformers: continuous batching, and `generate` with a static cache."""
    from tools.bench.gpu import beside

    folder = bench.folder / f"{shape} of zeros"
    write(folder, shape)
    model = beside.load(folder, bench.device)
    for title, work in beside.WAYS.items():
        bench.findings.piece(functools.partial(work, model, bench.sizes), title)


def served(bench: Bench, shape: str) -> None:
    """A company over WebSockets beside the bare executor, with the prefix cache and without."""
    from tools.bench.gpu import serving

    folder, piece = bench.stored(shape), bench.findings.piece
    sizes = serving.SMALLEST if bench.rehearsal else serving.FULL
    without = piece(lambda: serving.served(folder, bench.device, sizes, "--no-radix"), "no radix")
    prompt = round(without.get("prompt_tokens", 64))
    bare = piece(lambda: serving.bare(bench.subject(shape), sizes, prompt), "bare")
    bench.forget()
    if "failed" not in without and not isinstance(bare, dict):
        bench.findings.put(without["tokens_per_s"] / bare, "served / bare")
    piece(lambda: serving.served(folder, bench.device, sizes), "radix")


def killed(bench: Bench, shape: str) -> None:
    """A process whose device breaks, and `kill -9` of the executor under eight streams."""
    from tools.bench.gpu import serving

    folder, sizes = bench.stored(shape), serving.SMALLEST if bench.rehearsal else serving.FULL
    bench.findings.piece(lambda: serving.broken(bench.device), "broken device")
    bench.findings.piece(lambda: serving.killed(folder, bench.device, sizes), "executor")


SECTIONS: dict[str, Callable[[Bench, str], None]] = {
    work.__name__: work
    for work in (
        machine,
        exact,
        kernels,
        speed,
        steps,
        ablations,
        workload,
        peers,
        served,
        killed,
    )
}
