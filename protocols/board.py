"""Layout of the board: one row of u64 columns an actor, each column with exactly one writer.

The supervisor writes the first eight columns of every row, the actor the rest of its own row.
Readers never lock: a value is one aligned 8-byte word.
"""

from __future__ import annotations

import enum

COLUMNS = 64
"""Words in a row: 512 bytes, so rows of different writers never share a cache line."""


class State(enum.IntEnum):
    """Life of an actor as its row shows it."""

    DOWN = 0
    STARTING = 1
    READY = 2
    DRAINING = 3
    FAILED = 4


class Column(enum.IntEnum):
    """Index of a word in a row. The supervisor's: PID .. EXCUSED. The actor's: the others.

    EXCUSED counts the incarnations that died of a SIGKILL from outside: no request is to blame for that.

    Ticks count turns of the event loop (LOOP_TICK) and pieces of work done (WORK_TICK); BUSY_SINCE_NS
    is the monotonic time at which a blocking piece of work began, 0 when none runs. The scheduler's
    load: RUNNING, WAITING requests; TOKENS_HELD = tokens in its KV pool plus tokens still to prefill
    of all its requests; LAST_DISPATCH = highest `Submit.dispatch` it has taken into that count.
    The executor's sizes, for a scheduler that starts later: PAGES_TOTAL, PAGE_SIZE, SLOTS.
    The scheduler's DRAFTED_TOTAL: tokens guessed by speculation; ACCEPTED_TOTAL: those that were right.
    PAGES_AVAILABLE: free, or cached and in nobody's use. The frontend's WEBSOCKETS: those that are open.
    MAIL_DROPPED_TOTAL: records that came broken, or from an incarnation that had been replaced.
    AWAKE: 1 while the actor is sure to look at its mail before it sleeps (`runtime.doorbell`).
    Counters (…_TOTAL, MESSAGES_…) only grow, within one incarnation.
    """

    PID = 0
    INCARNATION = 1
    RESTARTS = 2
    STARTED_NS = 3
    EXCUSED = 4
    STATE = 8
    LOOP_TICK = 9
    WORK_TICK = 10
    BUSY_SINCE_NS = 11
    INBOX_BYTES = 12
    MESSAGES_IN = 13
    MESSAGES_OUT = 14
    RUNNING = 16
    WAITING = 17
    TOKENS_HELD = 18
    LAST_DISPATCH = 19
    PAGES_TOTAL = 20
    PAGES_FREE = 21
    PAGES_CACHED = 22
    PAGES_OWNED = 23
    PROMPT_TOKENS_TOTAL = 24
    CACHED_TOKENS_TOTAL = 25
    GENERATED_TOKENS_TOTAL = 26
    PREEMPTIONS_TOTAL = 27
    STEPS_TOTAL = 28
    REQUESTS_TOTAL = 29
    TURN_NS_TOTAL = 30
    STEP_US_TOTAL = 31
    CONNECTIONS = 32
    OPEN_REQUESTS = 33
    CACHE_QUERY_TOKENS_TOTAL = 34
    PAGE_SIZE = 35
    SLOTS = 36
    DRAFTED_TOTAL = 37
    ACCEPTED_TOTAL = 38
    PAGES_AVAILABLE = 39
    WEBSOCKETS = 40
    MAIL_DROPPED_TOTAL = 41
    AWAKE = 56


SUPERVISOR_COLUMNS = 8
"""Columns below this index are written by the supervisor, the others by the actor itself."""
