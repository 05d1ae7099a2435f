"""What a chaos run found: a table, the bad receipts, and a histogram of the pauses."""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Sequence

from runtime.tree import Child
from tools.bench.statistics import percentile
from tools.chaos.checker import Verdict
from tools.chaos.clients import Receipt
from tools.chaos.nemesis import Fault

HANG_SECONDS = Child.hang_seconds
"""Deadline of an actor that makes no turn of its loop."""


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished run. pauses: seconds from each kill to the next token of each open stream. leaks: what was
    left behind, logged as a bug, or dropped as broken or stale."""

    faults: Sequence[Fault]
    receipts: Sequence[Receipt]
    verdicts: Sequence[Verdict]
    pauses: Sequence[float]
    leaks: list[str] = dataclasses.field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing lost, duplicated, wrong, left behind or fenced too late."""
        return not self.verdicts and not self.leaks and not self.outlived

    @property
    def outlived(self) -> int:
        """Stopped processes that were still alive when their successor was on the board."""
        return sum(fault.outlived for fault in self.faults)

    @property
    def detections(self) -> list[float]:
        """Seconds from the hang deadline of each stopped actor to its death."""
        return [fault.died - fault.at - HANG_SECONDS for fault in self.faults if fault.died is not None]

    def lines(self) -> list[str]:
        """The report as Markdown."""
        kinds = Counter(f"{fault.kind} {fault.actor}" for fault in self.faults)
        rows: list[tuple[str, object]] = [
            ("faults", len(self.faults)),
            *sorted(kinds.items()),
            ("requests answered", len(self.receipts)),
            ("tokens", sum(receipt.tokens for receipt in self.receipts)),
            ("resumed by id", sum(receipt.resumes for receipt in self.receipts)),
            ("asked again (no way to resume)", sum(receipt.restarts for receipt in self.receipts)),
            ("bad receipts", len(self.verdicts)),
            ("left behind, or logged as a bug", len(self.leaks)),
            *_quantiles("kill → next token", self.pauses),
            *self._stops(),
        ]
        table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        bad = [f"- request {verdict.index}: {verdict.what}" for verdict in self.verdicts[:20]]
        return [*table, "", *bad, *(f"- left behind: {leak}" for leak in self.leaks[:20])]

    def _stops(self) -> list[tuple[str, object]]:
        if not any(fault.kind == "stop" for fault in self.faults):
            return []
        return [
            ("stopped actors killed as hung", len(self.detections)),
            ("stopped actors alive beside their successor", self.outlived),
            *_quantiles("hang deadline → death", self.detections),
        ]


def _quantiles(what: str, seconds: Sequence[float]) -> list[tuple[str, object]]:
    return [
        (f"{what} p50 s", f"{percentile(seconds, 0.5):.3f}"),
        (f"{what} p99 s", f"{percentile(seconds, 0.99):.3f}"),
        (f"{what} max s", f"{max(seconds, default=0.0):.3f}"),
    ]


def draw(pauses: Sequence[float], path: pathlib.Path) -> None:
    """A histogram of the pauses as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(pauses, bins=[step / 20 for step in range(61)], color="#3b6ea5")
    axes.set(xlabel="seconds from SIGKILL to the stream's next token", ylabel="streams")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
