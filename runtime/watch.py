"""Tells a hung actor from a busy one by two words of its row on the board; no I/O, no clock.

An actor that waits for mail ticks LOOP_TICK a few times a second. One that blocks its loop on purpose
(a model's forward) says since when in BUSY_SINCE_NS. So it hangs when it neither ticks nor says that
it is busy for `hang` seconds, or when it has been busy for more than `busy` seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LONGEST_GAP = 1.0
"""Seconds that one look may add to an actor's silence. A watcher that was itself stopped (SIGSTOP, a
suspended machine) finds everybody silent for as long as it was away, and must not kill for that."""

STARTING_HANG = 60.0
"""Seconds of silence that are no hang yet in an actor that is not ready: it imports, loads, compiles."""


@dataclass
class Watch:
    """What is known of one incarnation. Limits in seconds, for an actor that is ready. Before that it may
    be silent for STARTING_HANG, and busy for as long as it may take to be ready."""

    hang: float
    busy: float
    _tick: int = 0
    _silent: float = 0.0
    _busy_for: float = 0.0
    _busy_since: int = 0
    _looked: float | None = field(default=None)

    def look(self, now: float, *, tick: int, busy_since: int, ready: bool) -> str | None:
        """Take in the row's words at `now` (seconds); the reason in words when the actor hangs, else None.

        An actor that has not ticked yet is still importing its modules: its ready deadline, not this
        watch, bounds that.
        """
        gap = min(now - self._looked, LONGEST_GAP) if self._looked is not None else 0.0
        self._looked = now
        same_work = busy_since != 0 and busy_since == self._busy_since
        idle = busy_since == 0 and self._busy_since == 0
        self._busy_for = self._busy_for + gap if same_work and ready else 0.0
        self._silent = self._silent + gap if idle and tick == self._tick and tick else 0.0
        self._tick, self._busy_since = tick, busy_since
        if self._busy_for > self.busy:
            return f"was busy with one piece of work for {self._busy_for:.1f} s"
        if self._silent > (self.hang if ready else max(self.hang, STARTING_HANG)):
            return f"made no turn of its loop for {self._silent:.1f} s"
        return None
