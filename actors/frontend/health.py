"""Whether the company can serve: every actor ready, nobody hung; decided from rows of the board."""

from __future__ import annotations

import dataclasses

from protocols.board import Column, State
from runtime.board import Board, Row
from runtime.watch import Watch

LOOK_EVERY = 0.5
HANG_SECONDS = 5.0
BUSY_SECONDS = 120.0


@dataclasses.dataclass
class _Seen:
    """What is known of an actor's present incarnation."""

    incarnation: int
    watch: Watch
    trouble: str | None = None


class Health:
    """Looks at every actor's row from time to time."""

    def __init__(self, board: Board, rows: dict[str, int]) -> None:
        self._rows: dict[str, Row] = {name: board.row(index) for name, index in rows.items()}
        self._seen: dict[str, _Seen] = {}

    def look(self, now: float) -> list[str]:
        """Take in all rows at `now` (seconds); returns the names of actors that have been replaced since."""
        replaced: list[str] = []
        for name, row in self._rows.items():
            incarnation = row[Column.INCARNATION]
            seen = self._seen.get(name)
            if seen is None or seen.incarnation != incarnation:
                if seen is not None:
                    replaced.append(name)
                seen = self._seen[name] = _Seen(incarnation, Watch(HANG_SECONDS, BUSY_SECONDS))
            seen.trouble = seen.watch.look(
                now,
                tick=row[Column.LOOP_TICK],
                busy_since=row[Column.BUSY_SINCE_NS],
                ready=row[Column.STATE] == State.READY,
            )
        return replaced

    def problems(self) -> dict[str, str]:
        """What is wrong now, by actor; empty when the company can serve."""
        found: dict[str, str] = {}
        for name, row in self._rows.items():
            state = State(row[Column.STATE])
            seen = self._seen.get(name)
            if state is not State.READY:
                found[name] = state.name.lower()
            elif seen is not None and seen.trouble is not None:
                found[name] = seen.trouble
        return found
