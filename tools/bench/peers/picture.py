"""The comparison drawn: tokens a second of every engine, a panel for each model and case."""

from __future__ import annotations

import pathlib
from typing import Any

from tools.bench.peers.cases import TITLES as CASE_TITLES
from tools.bench.peers.engines import OURS
from tools.bench.peers.engines import TITLES as ENGINE_TITLES
from tools.bench.peers.measure import WEBSOCKET, Figures
from tools.bench.peers.models import TITLES as MODEL_TITLES
from tools.bench.peers.report import Part, decode_limit, rates
from tools.bench.statistics import number, spread

_LABELS = {OURS: ENGINE_TITLES[OURS], WEBSOCKET: "Troupe, WebSocket", **ENGINE_TITLES}
_OURS, _THEIRS = "#c2410c", "#94a3b8"


def draw(figures: Figures, path: pathlib.Path) -> None:
    """Write the picture; its kind is the path's suffix (png, svg, pdf)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    parts: dict[str, Part] = figures["models"]
    columns = max(len(part["cases"]) for part in parts.values())
    figure, panels = pyplot.subplots(
        len(parts), columns, figsize=(3.4 * columns, 3.2 * len(parts)), squeeze=False, layout="constrained"
    )
    for row, (model, part) in zip(panels, parts.items(), strict=True):
        for panel in row[len(part["cases"]) :]:
            panel.set_axis_off()
        for panel, case in zip(row, part["cases"], strict=False):
            _panel(panel, part, case)
        row[0].set_title(f"{MODEL_TITLES[model]}\n{row[0].get_title()}", fontsize=9)
    figure.suptitle("Tokens a second: median, and the range of the rounds", fontsize=11)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(panel: Any, part: Part, case: str) -> None:
    names = [name for name in _LABELS if part["cases"][case].get(name)]
    spreads = [spread(rates(part, case, name)) for name in names]
    colours = [_OURS if name in (OURS, WEBSOCKET) else _THEIRS for name in names]
    middles = [each.median for each in spreads]
    ranges = [[each.median - each.low for each in spreads], [each.high - each.median for each in spreads]]
    panel.barh([_LABELS[name] for name in names], middles, xerr=ranges, color=colours, ecolor="#334155")
    for index, middle in enumerate(middles):
        panel.text(0, index, f" {number(middle)}", va="center", fontsize=7)
    if case == "D1" and part["read_gb_s"]:
        panel.axvline(decode_limit(part).median, color="#334155", linestyle=":", label="memory limit")
        panel.legend(fontsize=6)
    panel.invert_yaxis()
    panel.tick_params(labelsize=7)
    panel.set_title(f"{case}: {CASE_TITLES[case]}", fontsize=8)
