"""Layout of the ledger: one slot in shared memory for each open choice of each request.

The object begins with a table of heads, 384 bytes a slot, always in memory; then come the slots' bodies,
three areas that only grow while the slot is open: the request (msgpack), the committed output tokens
(int32), and extras of tokens that cannot be recomputed (logprobs). A body takes memory only where it was
written, and closing the slot gives it back. Every word of a head has exactly one writer, and words of
different writers lie 64 bytes apart:

    frontend   STATE, ORIGIN, LINGERS, BILLED   claims and frees slots of its own range
    tokenizer  REQUEST_BYTES, DELIVERED         the normalised request; how far the client was served
    scheduler  COMMITTED, EXTRA_A, EXTRA_B,     what came out
               CACHED, TAIL                     prompt tokens that the prefix cache served at first; see below
               FIRST_WEIGHTS, MADE_BY           which weights its tokens were made with; see below
    balancer   REPLICA, DISPATCH                which scheduler has it, as which dispatch (Submit.dispatch)
    anyone     FOLLOWED                         when a client last followed it though its frontend had died

FOLLOWED is the one word that several may write: a clock reading, true whoever's comes last. LINGERS
marks a finished choice whose frontend has heard of its end: when, and that it is kept only for clients
that come back. BILLED: tokens for which its key was charged.

STATE is generation * 2 + open; it survives the closing, so generations, and with them request ids,
never repeat. The words of tokenizer, scheduler and balancer carry the generation they speak of in their
upper half, so nobody has to clear another's words: a word of an older generation reads as 0. EXTRA_A and
EXTRA_B need none, because COMMITTED says which of them counts: the first commit of a generation sets A to 0.

COMMITTED publishes a commit whole, tokens and finish reason and extras, in one store:

    63                    32  31    30    28  27    26                0
    | generation modulo 2^32 | turn | finish | tail | tokens committed |

The token area is reached by system calls, one for each write. So that a step of many choices does not make
one for each, the latest tokens may lie in the head: with `tail`, the last (count modulo 8) tokens are the
int32 from word TAIL on, those before them are in the token area. The eighth takes all eight there in one
write. A commit of several tokens takes the tail there too, and leaves none.

Of EXTRA_A and EXTRA_B, bytes of extras, the one that `turn` names (0 is A) is true; a commit with
extras writes the other and turns. What was written by a scheduler that was killed before its store to
COMMITTED therefore never counts.

FIRST_WEIGHTS is the serial number (`protocols.weights`) of the weights that made the first token, and bit i
of MADE_BY says that those of the serial FIRST_WEIGHTS + i made some, with the last bit for all from there on.
They are noted before the tokens are committed.
"""

from __future__ import annotations

import dataclasses
import enum

PAGE = 4096
HEAD_WORDS = 48
HEAD_BYTES = HEAD_WORDS * 8
COUNT_BITS = 27
MAX_TOKENS = (1 << COUNT_BITS) - 1
TAIL_BIT = COUNT_BITS
FINISH_BIT = 28
TURN_BIT = 31
TAIL_TOKENS = 8
"""Tokens that a head has room for."""


class Word(enum.IntEnum):
    """Index of a u64 word in a slot's head."""

    STATE = 0
    ORIGIN = 1
    LINGERS = 2
    BILLED = 3
    REQUEST_BYTES = 8
    DELIVERED = 9
    COMMITTED = 16
    EXTRA_A = 17
    EXTRA_B = 18
    CACHED = 19
    TAIL = 20
    REPLICA = 24
    DISPATCH = 25
    FOLLOWED = 32
    FIRST_WEIGHTS = 40
    MADE_BY = 41


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of a ledger: `slots` slots, each with room for a request of `request_bytes`, `tokens`
    output tokens and `extra_bytes` of extras. Offsets are bytes; areas start on page boundaries."""

    slots: int
    tokens: int
    request_bytes: int
    extra_bytes: int

    @property
    def heads(self) -> int:
        """Bytes of the table of heads, where the bodies begin."""
        return _pages(self.slots * HEAD_BYTES)

    @property
    def tokens_at(self) -> int:
        """Offset of the token area within a body; the request area is at 0."""
        return _pages(self.request_bytes)

    @property
    def extras_at(self) -> int:
        """Offset of the extras area within a body."""
        return self.tokens_at + _pages(self.tokens * 4)

    @property
    def stride(self) -> int:
        """Bytes from one body to the next."""
        return self.extras_at + _pages(self.extra_bytes)

    @property
    def size(self) -> int:
        """Bytes of the whole object (sparse)."""
        return self.heads + self.slots * self.stride


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
