"""How the product of few rows and a matrix is cut into programs on a GPU."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """columns: of the result, for each program. block: numbers of a row that are multiplied at a time.
    stages: so many blocks are on their way at once."""

    columns: int
    block: int
    stages: int


USUAL = Tiling(32, 256, 3)
TILINGS = (USUAL, Tiling(16, 256, 5), Tiling(16, 512, 4), Tiling(32, 512, 4))
"""Which of them is the best depends on the shape and the device. All fit into the memory of a Hopper
multiprocessor, with up to 16 rows."""

LIMITS = (4, 16)
"""Up to so many rows, each with a tiling of its own, a product may be cut otherwise than as usual."""

Tilings = tuple[Tiling | None, ...]
"""For each of LIMITS; None: by the library."""


def tiling_of(tilings: Tilings, rows: int) -> Tiling | None:
    """The one for so many rows."""
    fitting = (tiling for most, tiling in zip(LIMITS, tilings, strict=False) if rows <= most)
    return next(fitting, None)
