"""The rounds: every engine in turn on each case, with fresh prompts, so that all meet the same machine."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pathlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tools.bench.peers import bandwidth, models
from tools.bench.peers.cases import Case
from tools.bench.peers.engines import OURS, Engine, Setting
from tools.bench.peers.subjects import Figure, Subject

Figures = dict[str, Any]
"""{"taken", "machine", "threads", "models": {model: {"bytes", "read_gb_s": [...], "versions": {engine: text},
"failures": {engine: text}, "cases": {case: {engine: [figure, ...]}}}}}. A figure has "rate" (tokens/s),
"seconds", and of batches "first" (the first two ids of each answer), of streams the latencies. Figures
of an engine are in the order of the rounds."""
WEBSOCKET = f"{OURS}-websocket"
_KEPT = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure, where. options: for `actorctl serve`; say: tells of progress; keep: takes the
    figures after every round."""

    models: Sequence[str]
    cases: Sequence[Case]
    engines: Sequence[Engine]
    rounds: int
    peers: pathlib.Path
    cache: pathlib.Path
    threads: int
    options: Sequence[str]
    say: Callable[[str], None]
    keep: Callable[[Figures], None]


def measure(plan: Plan) -> Figures:
    """All rounds on all models."""
    figures: Figures = {
        "taken": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "threads": plan.threads,
        "models": {},
    }
    for name in plan.models:
        plan.say(f"{name}: making the model")
        folder = models.make(name, plan.cache)
        with tempfile.TemporaryDirectory() as logs, contextlib.ExitStack() as stack:
            part = figures["models"][name] = _part(plan, folder)
            bench = _Bench(plan, name, part)
            bench.open_all(folder, pathlib.Path(logs), stack)
            for round_ in range(plan.rounds + 1):
                bench.round(round_)
                plan.keep(figures)
    return figures


def _part(plan: Plan, folder: pathlib.Path) -> dict[str, Any]:
    return {
        "bytes": (folder / "model.safetensors").stat().st_size,
        "read_gb_s": [],
        "versions": {},
        "failures": {},
        "cases": {case.name: {} for case in plan.cases},
    }


class _Bench:
    """One model and the engines that have loaded it. An engine that fails is measured no more."""

    def __init__(self, plan: Plan, model: str, part: dict[str, Any]) -> None:
        self._plan, self._model, self._part = plan, model, part
        self._subjects: dict[str, Subject] = {}

    def open_all(self, folder: pathlib.Path, logs: pathlib.Path, stack: contextlib.ExitStack) -> None:
        """Start the engines, one after the other."""
        for engine in self._plan.engines:
            self._plan.say(f"{self._model}: starting {engine.name}")
            home, log = self._plan.peers / engine.environment, logs / engine.name
            setting = Setting(folder, self._plan.threads, home, log, self._plan.options)
            with self._watched(engine.name):
                self._subjects[engine.name] = subject = stack.enter_context(engine.open(setting))
                self._part["versions"][engine.name] = subject.version

    def round(self, number: int) -> None:
        """Every case; number 0 only warms up, and is not kept."""
        if number:
            self._part["read_gb_s"].append(bandwidth.measured(self._plan.threads))
        for whole in self._plan.cases:
            case = whole if number else whole.brief()
            for engine in self._plan.engines:
                for column, take in self._columns(case, engine, number):
                    if engine.name in self._subjects:
                        with self._watched(engine.name):
                            self._take(case, column, take, number)

    def _columns(
        self, case: Case, engine: Engine, number: int
    ) -> list[tuple[str, Callable[[Subject], Figure]]]:
        """What an engine does in a case: nothing, a batch, or streams of one kind or two."""
        seed = [number, *case.name.encode()]
        if not case.clients:
            prompts = case.prompts(models.SHAPES[self._model]["vocab_size"], seed)
            return [(engine.name, lambda subject: subject.batch(prompts, case.output))]
        if not engine.served:
            return []
        texts = [case.texts([*seed, over]) for over in range(2)]
        columns: list[tuple[str, Callable[[Subject], Figure]]] = [
            (engine.name, lambda subject: subject.streams(case, texts[0], socket=False))
        ]
        if engine.name == OURS:
            columns.append((WEBSOCKET, lambda subject: subject.streams(case, texts[1], socket=True)))
        return columns

    def _take(self, case: Case, column: str, take: Callable[[Subject], Figure], number: int) -> None:
        figure = take(self._subjects[column.removesuffix("-websocket")])
        figure["rate"] = case.tokens / figure["seconds"]
        if "tokens" in figure:
            answers = figure.pop("tokens")
            if [len(answer) for answer in answers] != [case.output] * case.requests:
                raise ValueError(f"{case.name} was answered with another number of tokens")
            figure["first"] = [answer[:_KEPT] for answer in answers]
        state = f"round {number}" if number else "warm-up"
        self._plan.say(f"{self._model} {state}: {case.name} {column} {figure['rate']:,.1f} tok/s")
        if number:
            self._part["cases"][case.name].setdefault(column, []).append(figure)

    @contextlib.contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """Whatever goes wrong with one engine, which may be anybody's program, must not lose all figures."""
        try:
            yield
        except Exception as error:
            cause: BaseException = error
            while isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            text = f"{type(cause).__name__}: {getattr(cause, 'message', None) or cause}"
            self._plan.say(f"{self._model}: {name} failed: {text}")
            self._part["failures"][name] = text
            self._subjects.pop(name, None)


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
