"""What precisions cost on the demo model, in short."""

from __future__ import annotations

from tools.actorctl.serve import DEMO_MODEL
from tools.bench.accuracy import measure


def test_other_precisions_stay_close_to_float32() -> None:
    costs = measure(DEMO_MODEL, 2)
    reference = costs["float32"]
    assert reference.agreement == 1.0
    for name, cost in costs.items():
        kept, near = (0.88, 0.15) if "fp8" in name else (0.95, 0.03)
        assert cost.agreement > kept
        assert abs(cost.perplexity / reference.perplexity - 1) < near
