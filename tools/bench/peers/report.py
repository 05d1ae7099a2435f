"""The comparison as Markdown: medians with the range of the rounds, and ratios to the best peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.bench.peers.cases import CASES
from tools.bench.peers.cases import TITLES as CASE_TITLES
from tools.bench.peers.engines import ENGINES, OURS
from tools.bench.peers.engines import TITLES as ENGINE_TITLES
from tools.bench.peers.measure import WEBSOCKET, Figures
from tools.bench.peers.models import TITLES as MODEL_TITLES
from tools.bench.statistics import Spread, number, spread

Part = dict[str, Any]
"""What `Figures` hold of one model."""
_STREAM_COLUMNS = {
    "requests_per_s": "req/s",
    "rate": "tok/s",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p99_ms": "TTFT p99 ms",
    "itl_p50_ms": "ITL p50 ms",
    "itl_p99_ms": "ITL p99 ms",
}


def lines(figures: Figures) -> list[str]:
    """All tables."""
    found = [f"Taken {figures['taken']} on {figures['machine']}, {figures['threads']} threads a peer."]
    for model, part in figures["models"].items():
        found += ["", f"### {MODEL_TITLES[model]}", *_batches(part), *_streams(part), *_remarks(part)]
    return found


def rates(part: Part, case: str, column: str) -> list[float]:
    """Tokens a second in every round that the column finished."""
    return [figure["rate"] for figure in part["cases"].get(case, {}).get(column, [])]


def best_peer(part: Part, case: str) -> str | None:
    """The peer with the highest median; None without any."""
    peers = [name for name in part["cases"][case] if name not in (OURS, WEBSOCKET)]
    return max(peers, key=lambda name: spread(rates(part, case, name)).median, default=None)


def ratio(part: Part, case: str, column: str = OURS) -> Spread | None:
    """Ours ÷ the best peer of the case, within each round."""
    best = best_peer(part, case)
    pairs = zip(rates(part, case, column), rates(part, case, best) if best else [], strict=False)
    ratios = [ours / theirs for ours, theirs in pairs]
    return spread(ratios) if ratios else None


def decode_limit(part: Part) -> Spread:
    """Tokens a second of one sequence if every weight were read once a token at the machine's bandwidth."""
    return spread([rate * 1e9 / part["bytes"] for rate in part["read_gb_s"]])


def agreement(part: Part, column: str) -> float | None:
    """Share of the answers whose first ids are the same as ours in the same round."""
    same = [
        ours == theirs
        for case in part["cases"].values()
        for mine, other in zip(case.get(OURS, []), case.get(column, []), strict=False)
        for ours, theirs in zip(mine.get("first", []), other.get("first", []), strict=True)
    ]
    return sum(same) / len(same) if same else None


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [titles, ["---"] * len(titles), *rows]
    return ["", *(f"| {' | '.join(row)} |" for row in cells)]


def _cell(value: Spread | None) -> str:
    return "–" if value is None else str(value)


def _titled(part: Part, name: str) -> str:
    version = part["versions"].get(name, "")
    return f"{ENGINE_TITLES[name]} {version}".strip()


def _batches(part: Part) -> list[str]:
    cases = [name for name in part["cases"] if not CASES[name].clients]
    if not cases:
        return []
    rows = []
    for engine in ENGINES:
        values = [rates(part, case, engine.name) for case in cases]
        if any(values):
            cells = [_cell(spread(value) if value else None) for value in values]
            rows.append([_titled(part, engine.name), *cells])
    rows.append(["**Troupe ÷ best peer**", *(f"**{_cell(ratio(part, case))}**" for case in cases)])
    return _table(["tok/s", *(f"{case}: {CASE_TITLES[case]}" for case in cases)], rows)


def _streams(part: Part) -> list[str]:
    found: list[str] = []
    for case, columns in part["cases"].items():
        if not CASES[case].clients or not columns:
            continue
        rows = []
        for name, taken in columns.items():
            title = "Troupe, WebSocket" if name == WEBSOCKET else f"{_titled(part, name)}, HTTP"
            cells = [_cell(spread([figure[key] for figure in taken])) for key in _STREAM_COLUMNS]
            own = name in (OURS, WEBSOCKET)
            rows.append([title, *cells, f"**{_cell(ratio(part, case, name))}**" if own else ""])
        found += _table([f"{case}: {CASE_TITLES[case]}", *_STREAM_COLUMNS.values(), "÷ best peer"], rows)
    return found


def _remarks(part: Part) -> list[str]:
    found = [""]
    if part["read_gb_s"]:
        limit = decode_limit(part)
        text = f"Memory is read at {spread(part['read_gb_s'])} GB/s; that limits D1 to {limit} tok/s"
        ours = rates(part, "D1", OURS)
        share = f", of which Troupe reaches {number(spread(ours).median / limit.median)}" if ours else ""
        found.append(f"{text}{share}.")
    agreeing = {name: agreement(part, name) for name in part["versions"] if name != OURS}
    known = [f"{ENGINE_TITLES[name]} {share:.0%}" for name, share in agreeing.items() if share is not None]
    if known:
        found.append(f"Answers that begin with the same tokens as Troupe's: {', '.join(known)}.")
    found += [f"{ENGINE_TITLES[name]} failed: {text}" for name, text in part["failures"].items()]
    return found
