"""What `python -m tools.bench gpu` does, section by section; each stands by itself."""

from __future__ import annotations

import dataclasses
import gc
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import torch

from protocols.config import KvCacheDtype, Quantization
from tools.bench.gpu import budget, exactness, kernels, measure, serving
from tools.bench.gpu.machine import Machine, describe
from tools.bench.gpu.shapes import spec_of, write

EIGHT_BITS: dict[str, dict[str, Any]] = {
    "int8": {"quantization": Quantization.INT8},
    "fp8": {"quantization": Quantization.FP8},
    "fp8, KV too": {"quantization": Quantization.FP8, "kv_cache_dtype": KvCacheDtype.FP8},
}
"""How a model can be loaded otherwise."""


@dataclasses.dataclass
class Bench:
    """One run. folder: for models; traces: where traces go, None for nowhere. rehearsal: all of it
    in a moment, on any device, with figures that mean nothing."""

    folder: pathlib.Path
    device: torch.device
    rehearsal: bool
    peers: bool
    traces: pathlib.Path | None
    tell: Callable[[str, Any], None]
    _machine: Machine | None = None
    _subject: measure.Subject | None = None

    @property
    def sizes(self) -> measure.Sizes:
        """Of what is measured."""
        return measure.SMALLEST if self.rehearsal else measure.FULL

    @property
    def serving(self) -> serving.Sizes:
        """Of the load on companies."""
        return serving.SMALLEST if self.rehearsal else serving.FULL

    @property
    def machine(self) -> Machine:
        """What this machine can do, measured once."""
        if self._machine is None:
            self._machine = describe(self.device, smallest=self.rehearsal)
        return self._machine

    def subject(self, shape: str, **options: Any) -> measure.Subject:
        """A model of the shape in memory; the one before has to go for it."""
        held = self._subject
        if held is None or options or held.shape != shape:
            self.forget()
            folder = self.folder / f"{shape} of zeros"
            self._subject = measure.Subject(folder, shape, self.device, self.machine, self.sizes, **options)
        assert self._subject is not None
        return self._subject

    def forget(self) -> None:
        """Free the device's memory."""
        self._subject = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def stored(self, shape: str) -> pathlib.Path:
        """A model directory of random weights; the only one there is, since they are large."""
        folder = self.folder / f"{shape} of numbers"
        if not folder.exists():
            for other in self.folder.glob("* of numbers"):
                shutil.rmtree(other)
            write(folder, shape, random=True)
        return folder


def machine(bench: Bench, _: str) -> dict[str, Any]:
    """Device, packages, and what they can do at most."""
    return dataclasses.asdict(bench.machine)


def exact(bench: Bench, _: str) -> dict[str, Any]:
    """Tokens against transformers, on every path there is."""
    found: dict[str, Any] = {}
    for verdict in exactness.verdicts(bench.folder, bench.device, smallest=bench.rehearsal):
        found[verdict.title] = dataclasses.asdict(verdict) | {"right": verdict.right}
        bench.tell("exact" if verdict.right else "WRONG", found[verdict.title])
    return found


def kernel(bench: Bench, shape: str) -> dict[str, Any]:
    """Kernels against what they stand for."""
    sizes = kernels.SMALLEST if bench.rehearsal else kernels.FULL
    return kernels.run(bench.device, spec_of(shape), bench.machine, sizes)


def speed(bench: Bench, shape: str) -> dict[str, Any]:
    """Decode steps and prefills as fractions of the roofline."""
    subject = bench.subject(shape)
    found: dict[str, Any] = {"decode": {}, "prefill": {}}
    with subject.executor() as (_, driver):
        for batch in bench.sizes.batches:
            found["decode"][str(batch)] = subject.decode(driver, batch)
            bench.tell(f"{shape}: decode of {batch}", found["decode"][str(batch)])
        for length in bench.sizes.prompts:
            found["prefill"][str(length)] = subject.prefill(driver, length)
            bench.tell(f"{shape}: prefill of {length}", found["prefill"][str(length)])
    return found


def steps(bench: Bench, shape: str) -> dict[str, Any]:
    """Where the microseconds of a decode step go: a table, and a trace."""
    batch, times, prompt = (2, 2, 8) if bench.rehearsal else (64, 50, 1024)
    path = None if bench.traces is None else bench.traces / f"decode-{shape}.json"
    with bench.subject(shape).executor() as (executor, _):
        found: dict[str, Any] = budget.budget(
            executor, batch, times, prompt, turns=5 if bench.rehearsal else 200
        )
        executor.release_graphs()
        launched = budget.Decodes(executor, batch, 4, prompt)
        found["launch without graphs"] = budget.alone(launched)[0]
        return found | {"kernels": budget.trace(executor, batch, 2 if bench.rehearsal else 5, prompt, path)}


def ablations(bench: Bench, shape: str) -> dict[str, Any]:
    """Decodes with one thing changed at a time."""
    found: dict[str, Any] = bench.subject(shape).ablations()
    for title, options in EIGHT_BITS.items():
        found[title] = bench.subject(shape, **options).ablations({"as served": {}})["as served"]
        bench.tell(f"{shape}: {title}", found[title])
    bench.forget()
    return found


def workload(bench: Bench, shape: str) -> dict[str, Any]:
    """Many requests of random lengths, and transformers beside us."""
    subject = bench.subject(shape)
    with subject.executor() as (_, driver):
        found: dict[str, Any] = {"ours": subject.workload(driver)}
    bench.tell(f"{shape}: ours", found["ours"])
    if bench.peers:
        folder = bench.folder / f"{shape} of zeros"
        del subject
        bench.forget()
        found |= measure.transformers_beside(folder, bench.sizes, bench.device)
    return found


def served(bench: Bench, shape: str) -> dict[str, Any]:
    """A company over WebSockets beside the bare executor, with the prefix cache and without."""
    folder = bench.stored(shape)
    bench.forget()
    found: dict[str, Any] = {}
    for title, options in (("radix", ()), ("no radix", ("--no-radix",))):
        found[title] = serving.served(folder, bench.device, bench.serving, *options)
        bench.tell(f"{shape}: {title}", found[title])
    found["bare"] = serving.bare(bench.subject(shape), bench.serving, round(found["radix"]["prompt_tokens"]))
    bench.forget()
    return found | {"served / bare": found["no radix"]["tokens_per_s"] / found["bare"]}


def killed(bench: Bench, shape: str) -> dict[str, Any]:
    """`kill -9` of the executor under eight streams."""
    folder = bench.stored(shape)
    bench.forget()
    return serving.killed(folder, bench.device, bench.serving)


SECTIONS: dict[str, tuple[Callable[[Bench, str], dict[str, Any]], tuple[str, ...]]] = {
    "machine": (machine, ("",)),
    "exact": (exact, ("",)),
    "kernels": (kernel, ("8b",)),
    "speed": (speed, ("0.6b", "8b", "14b")),
    "steps": (steps, ("8b",)),
    "ablations": (ablations, ("8b",)),
    "workload": (workload, ("0.6b",)),
    "served": (served, ("8b",)),
    "killed": (killed, ("8b",)),
}
"""In the order in which they run: what each does, and the shapes that it is done with."""
