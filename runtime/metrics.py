"""The company's metrics in Prometheus's text format (0.0.4), collected from the board and the black boxes.

Nobody is asked: the supervisor reads memory that the actors write anyway. Names are `troupe:` and what vLLM
calls the same thing after its own prefix, so its dashboards port by find-and-replace. Counters count over all
incarnations: what a row of the board had counted when its actor died is kept by the supervisor (`Past`).
"""

from __future__ import annotations

import dataclasses
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from protocols.adapters import Adapter
from protocols.board import Column
from protocols.config import Config
from protocols.meters import HISTOGRAMS, Count, Histogram, Named
from runtime.blackbox import BlackBox
from runtime.board import Row
from runtime.notices import Lost, Notice, Ready
from runtime.tree import Child

PREFIX = "troupe:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RECOVERY_BOUNDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

Labels = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One line: the name's ending, further labels, the value."""

    value: float
    labels: Labels = ()
    ending: str = ""


@dataclasses.dataclass(frozen=True)
class Family:
    """One metric. kind: "counter", "gauge" or "histogram"."""

    name: str
    kind: str
    text: str
    samples: tuple[Sample, ...]


_SCHEDULER_GAUGES = (
    ("num_requests_running", "Choices in the running batch.", Column.RUNNING),
    ("num_requests_waiting", "Choices that wait for their first step.", Column.WAITING),
)
_SCHEDULER_COUNTERS = (
    ("num_preemptions_total", "Choices that were retracted for want of pages.", Column.PREEMPTIONS_TOTAL),
    ("prompt_tokens_total", "Prompt tokens of all requests.", Column.PROMPT_TOKENS_TOTAL),
    ("prompt_tokens_cached_total", "Of them, found in the prefix cache.", Column.CACHED_TOKENS_TOTAL),
    ("generation_tokens_total", "Tokens generated.", Column.GENERATED_TOKENS_TOTAL),
    (
        "prefix_cache_queries_total",
        "Tokens looked up in the prefix cache.",
        Column.CACHE_QUERY_TOKENS_TOTAL,
    ),
    ("prefix_cache_hits_total", "Tokens found there.", Column.CACHED_TOKENS_TOTAL),
    (
        "spec_decode_num_draft_tokens_total",
        "Tokens that speculation guessed.",
        Column.DRAFTED_TOTAL,
    ),
    (
        "spec_decode_num_accepted_tokens_total",
        "Of them, those that were right.",
        Column.ACCEPTED_TOTAL,
    ),
    ("engine_steps_total", "Steps.", Column.STEPS_TOTAL),
)
_ACTOR_COUNTERS = (
    ("actor_messages_received_total", "Messages that an actor took in.", Column.MESSAGES_IN),
    ("actor_messages_sent_total", "Messages that an actor sent.", Column.MESSAGES_OUT),
    (
        "actor_mail_dropped_total",
        "Records to an actor that were broken, or of a replaced incarnation.",
        Column.MAIL_DROPPED_TOTAL,
    ),
)
_REASONS = (
    (Count.STOP, "stop"),
    (Count.LENGTH, "length"),
    (Count.ABORT, "abort"),
    (Count.ERROR, "error"),
)


class Past:
    """What does not lie in shared memory: counters of incarnations that are gone, and recoveries."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, Column], int] = {}
        self._lost: dict[str, float] = {}
        self._recovered = [0] * (len(RECOVERY_BOUNDS) + 1)
        self._recovery_seconds = 0.0

    def bury(self, name: str, row: Row) -> None:
        """Take over the counters of a row that is about to be cleared."""
        for column in Column:
            if column.name.endswith("_TOTAL") or column in (Column.MESSAGES_IN, Column.MESSAGES_OUT):
                key = name, column
                self._counted[key] = self._counted.get(key, 0) + row[column]

    def total(self, name: str, row: Row, column: Column) -> int:
        """A counter over all incarnations."""
        return self._counted.get((name, column), 0) + row[column]

    def hear(self, notice: Notice, now: float) -> None:
        """Time a recovery, from the loss of an actor until its successor is ready."""
        match notice:
            case Lost(name=name):
                self._lost.setdefault(name, now)
            case Ready(name=name) if name in self._lost:
                seconds = now - self._lost.pop(name)
                self._recovered[bisect_left(RECOVERY_BOUNDS, seconds)] += 1
                self._recovery_seconds += seconds
            case _:
                pass

    def recoveries(self) -> Family:
        """How long they took."""
        samples = _buckets((), RECOVERY_BOUNDS, self._recovered, self._recovery_seconds)
        text = "From the loss of an actor until its successor was ready."
        return Family("recovery_seconds", "histogram", text, tuple(samples))


class Collector:
    """Reads one company. adapters: those that are loaded, now."""

    def __init__(
        self,
        config: Config,
        children: Mapping[str, Child],
        rows: Mapping[str, Row],
        boxes: Mapping[str, BlackBox],
        past: Past,
        adapters: Callable[[], Iterable[Adapter]] = tuple,
    ) -> None:
        self._max_loras = config.max_loras
        self._adapters = adapters
        self._labels: Labels = (("model_name", config.model.name),)
        self._children = children
        self._rows, self._boxes, self._past = rows, boxes, past

    def families(self) -> Iterator[Family]:
        """Every metric as it is now."""
        yield from self._of_schedulers()
        for histogram in HISTOGRAMS:
            yield self._histogram(histogram)
        yield self._of_adapters()
        yield from self._of_frontends()
        yield from self._of_actors()
        yield self._past.recoveries()

    def text(self) -> str:
        """All of it as Prometheus wants to read it."""
        return "".join(_lines(family, self._labels) for family in self.families())

    def documents(self) -> list[dict[str, Any]]:
        """All of it as values."""
        return [_document(family, self._labels) for family in self.families()]

    def _of_kind(self, kind: str) -> list[Child]:
        return [child for child in self._children.values() if child.kind == kind]

    def _of_schedulers(self) -> Iterator[Family]:
        schedulers = self._of_kind("scheduler")
        for name, text, column in _SCHEDULER_GAUGES:
            values = [Sample(self._rows[each.name][column], _engine(each)) for each in schedulers]
            yield Family(name, "gauge", text, tuple(values))
        usage = [Sample(_usage(self._rows[each.name]), _engine(each)) for each in schedulers]
        yield Family(
            "kv_cache_usage_perc", "gauge", "Pages in use by running requests, 1 is all.", tuple(usage)
        )
        for name, text, column in _SCHEDULER_COUNTERS:
            counts = [Sample(self._total(each, column), _engine(each)) for each in schedulers]
            yield Family(name, "counter", text, tuple(counts))
        boxes = [(self._boxes[each.name], _engine(each)) for each in schedulers]
        replayed = [Sample(box.counted(Count.REPLAYED), engine) for box, engine in boxes]
        yield Family(
            "replayed_tokens_total",
            "counter",
            "Tokens computed again after a retraction or a death.",
            tuple(replayed),
        )

    def _of_adapters(self) -> Family:
        """Which are in use, as routers between several companies want to know it; the value is the time."""
        names = {adapter.id: adapter.name for adapter in self._adapters()}
        samples = []
        for child in self._of_kind("scheduler"):
            box = self._boxes[child.name]
            lists = {what: [names[id] for id in box.named(what) if id in names] for what in Named}
            labels = (
                *_engine(child),
                ("max_lora", str(self._max_loras)),
                ("running_lora_adapters", ",".join(lists[Named.RUNNING])),
                ("waiting_lora_adapters", ",".join(lists[Named.WAITING])),
            )
            samples.append(Sample(time.time(), labels))
        text = "Adapters through which requests run and wait; the value is the time."
        return Family("lora_requests_info", "gauge", text, tuple(samples))

    def _of_frontends(self) -> Iterator[Family]:
        frontends = self._of_kind("frontend")
        boxes = [self._boxes[each.name] for each in frontends]
        reasons = [
            Sample(sum(box.counted(count) for box in boxes), (("finished_reason", reason),))
            for count, reason in _REASONS
        ]
        yield Family("request_success_total", "counter", "Choices that ended, by reason.", tuple(reasons))
        for name, text, column in (
            ("websocket_connections_active", "Open WebSockets.", Column.WEBSOCKETS),
            ("http_connections_active", "Open connections.", Column.CONNECTIONS),
        ):
            values = [Sample(self._rows[each.name][column], (("actor", each.name),)) for each in frontends]
            yield Family(name, "gauge", text, tuple(values))

    def _of_actors(self) -> Iterator[Family]:
        for name, text, column in (
            ("actor_up", "1 while an actor's process lives.", Column.PID),
            ("actor_ring_depth_bytes", "Unread mail in an actor's rings.", Column.INBOX_BYTES),
        ):
            bound = 1 if column is Column.PID else 2**64
            values = [
                Sample(min(self._rows[each][column], bound), (("actor", each),)) for each in self._children
            ]
            yield Family(name, "gauge", text, tuple(values))
        restarts = [Sample(self._rows[each][Column.RESTARTS], (("actor", each),)) for each in self._children]
        yield Family("actor_restarts_total", "counter", "Replacements of an actor.", tuple(restarts))
        for name, text, column in _ACTOR_COUNTERS:
            counts = [
                Sample(self._total(child, column), (("actor", child.name),))
                for child in self._children.values()
            ]
            yield Family(name, "counter", text, tuple(counts))

    def _total(self, child: Child, column: Column) -> int:
        return self._past.total(child.name, self._rows[child.name], column)

    def _histogram(self, histogram: Histogram) -> Family:
        """Of each replica's scheduler, or of all frontends together."""
        writers = self._of_kind(histogram.kind)
        bounds = [bound / histogram.unit for bound in histogram.bounds]
        if histogram.kind == "scheduler":
            groups = [(_engine(each), [each]) for each in writers]
        else:
            groups = [((), writers)]
        samples = [
            sample for labels, group in groups for sample in self._merged(histogram, labels, bounds, group)
        ]
        return Family(histogram.name, "histogram", histogram.text, tuple(samples))

    def _merged(
        self, histogram: Histogram, labels: Labels, bounds: list[float], writers: list[Child]
    ) -> Iterator[Sample]:
        read = [self._boxes[each.name].buckets(histogram) for each in writers]
        counts = [sum(column) for column in zip(*(buckets for buckets, _ in read), strict=True)]
        return _buckets(labels, bounds, counts, sum(total for _, total in read) / histogram.unit)


def _engine(child: Child) -> Labels:
    return (("engine", str(child.index)),)


def _usage(row: Row) -> float:
    total = row[Column.PAGES_TOTAL]
    return (total - row[Column.PAGES_AVAILABLE]) / total if total else 0.0


def _buckets(labels: Labels, bounds: Iterable[float], counts: list[int], total: float) -> Iterator[Sample]:
    """The lines of a histogram from the counts of each of its buckets alone."""
    seen = 0
    for bound, count in zip((*map(_number, bounds), "+Inf"), counts, strict=True):
        seen += count
        yield Sample(seen, (*labels, ("le", bound)), "_bucket")
    yield Sample(seen, labels, "_count")
    yield Sample(total, labels, "_sum")


def _document(family: Family, common: Labels) -> dict[str, Any]:
    samples = [
        {"ending": each.ending, "labels": dict((*common, *each.labels)), "value": each.value}
        for each in family.samples
    ]
    return {"name": PREFIX + family.name, "type": family.kind, "help": family.text, "samples": samples}


def _lines(family: Family, common: Labels) -> str:
    name = PREFIX + family.name
    lines = [f"# HELP {name} {family.text}", f"# TYPE {name} {family.kind}"]
    for sample in family.samples:
        labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in (*common, *sample.labels))
        lines.append(f"{name}{sample.ending}{{{labels}}} {_number(sample.value)}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return repr(float(value)) if value != int(value) else str(int(value))
