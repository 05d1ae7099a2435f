"""What actors do a second, from two looks at the board."""

from __future__ import annotations

from typing import Any

Actors = list[dict[str, Any]]


def rates(before: dict[str, Any], now: dict[str, Any], seconds: float) -> Actors:
    """The actors of `now` with rates since `before`, `seconds` earlier. A new incarnation starts at 0."""
    earlier = {actor["name"]: actor for actor in before["actors"]}
    return [_rate(earlier.get(actor["name"], {}), actor, seconds) for actor in now["actors"]]


def _share(part: float, whole: float) -> str | None:
    return f"{100 * part / whole:.0f} %" if whole else None


def _rate(before: dict[str, Any], now: dict[str, Any], seconds: float) -> dict[str, Any]:
    same = before.get("incarnation") == now["incarnation"]

    def per_second(counter: str) -> float:
        grown: int = now[counter] - (before[counter] if same else 0)
        return max(grown, 0) / seconds

    scheduler = now["kind"] == "scheduler"
    used = now["pages_total"] - now["pages_available"]
    return {
        **now,
        "in_rate": per_second("messages_in"),
        "out_rate": per_second("messages_out"),
        "token_rate": per_second("generated_tokens_total") if scheduler else None,
        "running": now["running"] if scheduler else None,
        "waiting": now["waiting"] if scheduler else None,
        "guessed": _share(per_second("accepted_total"), per_second("drafted_total")) if scheduler else None,
        "pages": f"{used}/{now['pages_total']}" if scheduler else None,
        "busy": per_second("step_us_total") / 1e4 if now["kind"] == "executor" else None,
    }
