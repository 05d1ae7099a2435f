"""Every verb of this company by its name."""

from __future__ import annotations

from collections.abc import Mapping

from actors.control import (
    adapters,
    company,
    experts,
    logs,
    memory,
    pace,
    profile,
    requests,
    sessions,
    traces,
    watching,
    weights,
)
from runtime.verbs import Verb

VERBS: Mapping[str, Verb] = {
    **adapters.VERBS,
    **company.VERBS,
    **experts.VERBS,
    **logs.VERBS,
    **memory.VERBS,
    **pace.VERBS,
    **profile.VERBS,
    **requests.VERBS,
    **sessions.VERBS,
    **traces.VERBS,
    **watching.VERBS,
    **weights.VERBS,
}
