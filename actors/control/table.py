"""Every verb of this company by its name."""

from __future__ import annotations

from collections.abc import Mapping

from actors.control import adapters, company, memory, pace, requests, sight, weights
from runtime.verbs import Verb

VERBS: Mapping[str, Verb] = {
    **adapters.VERBS,
    **company.VERBS,
    **memory.VERBS,
    **pace.VERBS,
    **requests.VERBS,
    **sight.VERBS,
    **weights.VERBS,
}
