"""Records of traces: what an actor notes of its work, 64 bytes each, on the tape of its black box.

A record names its request by the id of the choice (`rid`), which never repeats, and a step by the plan's
(epoch, step). That is enough to join the records of all actors: ARRIVED and BEGIN tie the W3C ids to the
choice, PREFILL and DECODE tie it to steps. Times are CLOCK_MONOTONIC in nanoseconds, the same clock in every
process of a machine.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

RECORD = struct.Struct("<HHI7Q")
RECORD_BYTES = RECORD.size
assert RECORD_BYTES == 64


class SpanName(enum.IntEnum):
    """What a record tells; `items` and a, b, c, d by kind, 0 where nothing is said.

    ARRIVED     frontend: a request came.       a, b trace id; c its caller's span, d its own; rid 0
    BEGIN       frontend: it became a choice.   items: number of the choice; a, b trace id; d span of ARRIVED
    REQUEST     frontend: a choice ended.       a Finish, b tokens; its time is from the arrival on
    SOCKET      frontend: rows were written.    a tokens so far; items: rows together
    RENDER      tokenizer: the chat template
    ENCODE      tokenizer: tokenised, stored in the ledger, submitted
    DETOKENISE  tokenizer: tokens became text.  a tokens so far; items: rows together
    ROUTE       balancer: a replica was chosen. a replica
    QUEUE       scheduler: waited for a step.   a tokens then known
    PREFILL, DECODE  scheduler: part of a step, from launch to landing. a epoch, b step, c tokens, d tokens
                of the whole step
    TURN        scheduler: one turn.            items: messages taken in; rid 0
    STEP        executor: one step.             items: rows; a epoch, b step, c prefill tokens; rid 0
    """

    ARRIVED = 1
    BEGIN = 2
    REQUEST = 3
    SOCKET = 4
    RENDER = 5
    ENCODE = 6
    DETOKENISE = 7
    ROUTE = 8
    QUEUE = 9
    PREFILL = 10
    DECODE = 11
    TURN = 12
    STEP = 13


class Record(NamedTuple):
    """One record as it is read. incarnation: of the writer, modulo 2^16. start, duration: nanoseconds."""

    kind: int
    incarnation: int
    items: int
    rid: int
    start: int
    duration: int
    a: int
    b: int
    c: int
    d: int

    @property
    def end(self) -> int:
        """When it was over."""
        return self.start + self.duration


def records(data: bytes) -> list[Record]:
    """The whole records of a piece of tape; none of what a death left unwritten."""
    whole = len(data) - len(data) % RECORD_BYTES
    return [Record(*fields) for fields in RECORD.iter_unpack(data[:whole]) if fields[0]]


def is_sampled(trace: str) -> bool:
    """Whether a request with this traceparent is traced (its flags' lowest bit)."""
    return trace[-1:] in _ODD


_ODD = frozenset("13579bdf")
