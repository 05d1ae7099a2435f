"""What precisions cost on the demo model, in short."""

from __future__ import annotations

from tools.actorctl.serve import DEMO_MODEL
from tools.bench.accuracy import measure


def test_other_precisions_stay_close_to_float32() -> None:
    costs = measure(DEMO_MODEL, 4)
    reference = costs["float32"]
    assert reference.agreement == 1.0
    for cost in costs.values():
        assert cost.agreement > 0.95
        assert abs(cost.perplexity / reference.perplexity - 1) < 0.03
