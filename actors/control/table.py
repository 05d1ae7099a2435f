"""Every verb of this company by its name."""

from __future__ import annotations

from collections.abc import Mapping

from actors.control import pace, weights
from runtime.verbs import Verb

VERBS: Mapping[str, Verb] = {**pace.VERBS, **weights.VERBS}
