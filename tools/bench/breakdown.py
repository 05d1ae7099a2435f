"""`python -m tools.bench breakdown`: where the microseconds of a decode step go.

The scheduler's core, a ring each way and an executor, in one process and in turn, so that each part is seen
by itself; the kernels tell what their team's threads did in each phase. What is left of a launch is Python.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec
import numpy as np

from actors.scheduler.commands import Launch
from actors.scheduler.core import Core, Mail
from protocols.config import Config, read_model_card
from protocols.messages import Submit
from protocols.plan import ExecutorReady, Plan, StepDone
from protocols.sampling import SamplingParams
from protocols.wire import Decoder, encode
from runtime.ring import Ring
from tools.bench import flame, offline
from tools.bench.peers import models
from tools.bench.peers.cases import CASES, Case

CONTEXT = 1152
_RING = 1 << 20
_TURN, _RINGS, _PYTHON, _FINISH = (
    "scheduler: a turn",
    "rings: plan and result",
    "Python of a launch",
    "result",
)
_KERNELS = "kernels"


@dataclasses.dataclass
class Times:
    """Nanoseconds of all decode steps, by part; of the kernels: working and waiting of each thread."""

    steps: int = 0
    parts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    kernels: Any = 0

    def table(self, names: tuple[str, ...]) -> Iterator[tuple[str, float, float]]:
        """(part, microseconds a step, of which the first thread waited for others)."""
        for part, spent in self.parts.items():
            yield part, spent / self.steps / 1e3, 0.0
        for name, (working, waiting) in zip(names, self.kernels[0].tolist(), strict=True):
            if working + waiting:
                yield name, (working + waiting) / self.steps / 1e3, waiting / self.steps / 1e3


class Company:
    """Scheduler, rings and executor, one after another."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.executor = offline.load_executor(config)
        self._rings = Ring.create(_RING), Ring.create(_RING)
        self._epoch = 0

    def close(self) -> None:
        """Give the rings back."""
        for ring in self._rings:
            ring.close()

    def run(self, case: Case, seed: int) -> Times:
        """All requests of a case; its steps that do nothing but decode all of them."""
        self._epoch += 1 << 32
        config, executor, times = self._config, self.executor, Times()
        burst = int(config.burst_ms * 1000)
        core = Core(chunk_size=config.chunk_size, burst_us=burst, epoch=self._epoch)
        sizes = (executor.pages, executor.page_size, executor.slots, executor.vocab_size)
        plans = _plans(core, [ExecutorReady(1, *sizes), *_requests(case, config.model.vocab_size, seed)])
        executor._kernels.measure(True)
        while plans:
            plan = plans.popleft()
            parts, done = self._step(plan)
            now = time.perf_counter_ns()
            plans += _plans(core, [done])
            parts[_TURN] = time.perf_counter_ns() - now
            if len(plan.decodes) == 4 * case.requests and not plan.chunks:
                times.steps += plan.rounds
                times.parts.update({part: spent for part, spent in parts.items() if part != _KERNELS})
                times.kernels = times.kernels + parts[_KERNELS]
        executor._kernels.measure(False)
        return times

    def _step(self, plan: Plan) -> tuple[dict[str, Any], StepDone]:
        executor, (there, back) = self.executor, self._rings
        before, began = executor._kernels.spent(), time.perf_counter_ns()
        arrived = _through(there, plan, _PLANS)
        at = time.perf_counter_ns()
        flight = executor.launch(arrived)
        launched = time.perf_counter_ns()
        done = executor.finish(flight)
        finished = time.perf_counter_ns()
        done = _through(back, done, _RESULTS)
        ended = time.perf_counter_ns()
        kernels = executor._kernels.spent() - before
        parts = {
            _RINGS: at - began + ended - finished,
            _PYTHON: launched - at - int(kernels[0].sum()),
            _FINISH: finished - launched,
            _KERNELS: kernels,
        }
        return parts, done


_PLANS: Decoder[Plan] = Decoder(Plan)
_RESULTS: Decoder[StepDone] = Decoder(StepDone)


def _through(ring: Ring, message: Any, decoder: Decoder[Any]) -> Any:
    """What arrives at the other end of a ring."""
    assert ring.write_nowait(encode(message), 0)
    batch = ring.read_batch(1)
    assert batch is not None
    _incarnation, (payload,) = batch
    return decoder(payload)


def _plans(core: Core, mail: Sequence[Mail]) -> collections.deque[Plan]:
    return collections.deque(command.plan for command in core.turn(mail) if isinstance(command, Launch))


def _requests(case: Case, vocabulary: int, seed: int) -> Iterator[Submit]:
    for rid, prompt in enumerate(case.prompts(vocabulary, [seed])):
        sampling = SamplingParams(temperature=0.0, seed=rid, max_tokens=case.output, ignore_eos=True)
        yield Submit(rid, 0, 0, np.array(prompt, "<i4").tobytes(), sampling)


def tree(model: str, case: str, rows: list[tuple[str, float, float]]) -> flame.Box:
    """The step as boxes within boxes."""
    kernels = [flame.Box(name, spent, _parted(spent, waited)) for name, spent, waited in rows if waited]
    outside = [flame.Box(name, spent) for name, spent, waited in rows if not waited]
    whole = flame.Box(_KERNELS, sum(box.size for box in kernels), tuple(kernels))
    boxes = (whole, *outside)
    return flame.Box(f"a step of {model}, {case}", sum(box.size for box in boxes), boxes)


def _parted(spent: float, waited: float) -> tuple[flame.Box, ...]:
    return flame.Box("working", spent - waited), flame.Box("waiting", waited)


@click.command()
@click.option("--model", type=click.Choice(list(models.SHAPES)), default="llama15m", show_default=True)
@click.option("--cases", default="D1,D16", show_default=True, help="Of those of `peers`, joined by commas.")
@click.option("--cache", type=click.Path(path_type=pathlib.Path), help="Where the models are kept.")
@click.option("--json", "json_path", type=click.Path(path_type=pathlib.Path), help="Write the figures here.")
@click.option("--flame", "folder", type=click.Path(path_type=pathlib.Path), help="Draw SVGs in this folder.")
def breakdown(
    model: str,
    cases: str,
    cache: pathlib.Path | None,
    json_path: pathlib.Path | None,
    folder: pathlib.Path | None,
) -> None:
    """Where the time of a decode step goes, part by part; needs the CPU's kernels."""
    from gpu.cpu.library import WORKS

    card = read_model_card(models.make(model, cache or models.default_cache()))
    card = msgspec.structs.replace(card, context=min(CONTEXT, card.context))
    company = Company(Config(card, device="cpu", dtype="bfloat16", max_running=16, kv_memory=1 << 30))
    figures: dict[str, Any] = {}
    for name in cases.split(","):
        company.run(CASES[name].brief(), 0)
        rows = list(company.run(CASES[name], 1).table(WORKS))
        figures[name] = {part: {"us": spent, "waiting_us": waited} for part, spent, waited in rows}
        for line in lines(name, rows):
            click.echo(line)
        if folder is not None:
            (folder / f"step-{model}-{name}.svg").write_text(flame.draw(tree(model, name, rows)))
    if json_path is not None:
        json_path.write_text(json.dumps({model: figures}, indent=1))
    company.close()


def lines(case: str, rows: list[tuple[str, float, float]]) -> Iterator[str]:
    """A table of one case."""
    total = sum(spent for _, spent, _ in rows)
    yield f"| {case}: part of a step | µs | of which waiting | share |"
    yield "|---|---|---|---|"
    for part, spent, waited in sorted(rows, key=lambda row: -row[1]):
        yield f"| {part} | {spent:,.1f} | {waited:,.1f} | {spent / total:.1%} |"
    yield f"| all | {total:,.1f} | {sum(waited for _, _, waited in rows):,.1f} | |"
    yield ""
