"""Every verb of this company by its name."""

from __future__ import annotations

from collections.abc import Mapping

from actors.control import adapters, pace, sight, weights
from runtime.verbs import Verb

VERBS: Mapping[str, Verb] = {**adapters.VERBS, **pace.VERBS, **sight.VERBS, **weights.VERBS}
