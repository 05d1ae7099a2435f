"""The benchmark of shapes: every shape goes on to the last token that is asked for."""

from __future__ import annotations

from tools.actorctl.serve import DEMO_MODEL
from tools.bench import structured


def test_a_round() -> None:
    (round_,) = structured.measure(DEMO_MODEL, clients=2, requests=2, output=24, repeats=1, options=())
    assert set(round_) == set(structured.SHAPES) and min(round_.values()) > 0
