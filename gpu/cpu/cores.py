"""How many threads an executor computes with on a CPU.

Our kernels take their work in small pieces, go on without a thread that has lost its core, and sleep between
steps: on few cores they use all of them, and share these with the other actors (on 2 cores two threads
measure 1.3 times the tokens served by one). Torch's operations end when their slowest thread does, so one
that shares its core makes all wait for a turn of the system's scheduler: they always leave a core. Where
there are more cores, some are left to the other actors; nobody is bound to a core.
"""

from __future__ import annotations

import dataclasses

FEW = 3
"""Cores of which our kernels leave none."""
SPARED_OF = 16
"""Of each so many cores, or a part of them, one is left to frontends, tokenizers and schedulers."""


@dataclasses.dataclass(frozen=True)
class Threads:
    """Of our kernels, and of torch's operations."""

    kernels: int
    torch: int


def threads(cores: int, replicas: int = 1, wanted: int = 0) -> Threads:
    """The threads of each of `replicas` on a machine with so many cores. wanted: what was asked for, 0 to
    choose."""
    if wanted:
        return Threads(wanted, wanted)
    spared = 0 if cores <= FEW else -(-cores // SPARED_OF)
    return Threads(max(1, (cores - spared) // replicas), max(1, (cores - max(1, spared)) // replicas))
