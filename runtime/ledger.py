"""The ledger: what every open request is and what has come out of it. Commit before expose.

Layout and writers: `protocols.ledger`; the memory: `runtime.ledger_memory`; tokens: `runtime.ledger_tokens`.

A request id whose generation is not its slot's is stale: StaleRequest. A frontend frees a slot once
its finish is committed or nobody below ever knew of it; until then a late scheduler may write to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from protocols.errors import PeerError
from protocols.ledger import HEAD_WORDS, MAX_TOKENS, Layout, Word
from protocols.request import SLOT_BITS, request_id
from protocols.weights import Made
from runtime import segment
from runtime.ledger_memory import LOW, SLOT_MASK, STATE, StaleRequest, punch, write
from runtime.ledger_tokens import CommittedTokens

__all__ = ["Ledger", "StaleRequest"]

_ORIGIN = int(Word.ORIGIN)
_REQUEST_BYTES, _DELIVERED = int(Word.REQUEST_BYTES), int(Word.DELIVERED)
_REPLICA, _DISPATCH = int(Word.REPLICA), int(Word.DISPATCH)
_LINGERS, _FOLLOWED = int(Word.LINGERS), int(Word.FOLLOWED)
_FIRST_WEIGHTS, _MADE_BY = int(Word.FIRST_WEIGHTS), int(Word.MADE_BY)
_BILLED = int(Word.BILLED)


class Ledger(CommittedTokens):
    """One process's view of the ledger."""

    def __init__(self, mapping: segment.Mapping, layout: Layout, origins: int) -> None:
        super().__init__(mapping, layout, origins)
        self._free: dict[int, deque[int]] = {}

    @classmethod
    def create(cls, layout: Layout, origins: int = 1) -> Ledger:
        """A new ledger, every slot free, for `origins` frontends. Raises StartError without room."""
        if not 0 < layout.slots <= SLOT_MASK + 1:
            raise ValueError(f"a ledger has 1 to {SLOT_MASK + 1} slots, not {layout.slots}")
        if layout.tokens > MAX_TOKENS or layout.extra_bytes > LOW or layout.request_bytes > LOW:
            raise ValueError("a ledger's slot holds at most 2**27 - 1 tokens and 4 GiB of request or extras")
        fd = segment.create(layout.size, reserve=layout.heads)
        return cls(segment.Mapping(fd, layout.heads), layout, origins)

    @classmethod
    def attach(cls, fd: int, layout: Layout, origins: int = 1) -> Ledger:
        """The ledger behind an inherited descriptor, which the object owns from now on."""
        segment.require_ordered_stores()
        if segment.size_of(fd) != layout.size:
            raise PeerError(f"descriptor {fd} is no ledger of this layout: {segment.size_of(fd)} bytes")
        return cls(segment.Mapping(fd, layout.heads), layout, origins)

    # The frontend's side.

    def claim(self, origin: int) -> int | None:
        """Open a free slot of frontend `origin`'s range: its new request id, None when all are taken."""
        free = self._free.get(origin)
        if free is None:
            free = self._free[origin] = self._rebuild(origin)
        if not free:
            return None
        slot = free.popleft()
        head = slot * HEAD_WORDS
        generation = (self._words[head + STATE] >> 1) + 1
        self._words[head + _ORIGIN] = origin
        self._words[head + STATE] = generation << 1 | 1
        return request_id(slot, generation)

    def _rebuild(self, origin: int) -> deque[int]:
        """The closed slots of a range. A frontend killed inside `free` may have left memory in one."""
        if not 0 <= origin < self.origins:
            raise ValueError(f"frontend {origin} of {self.origins}")
        first, last = (self.layout.slots * i // self.origins for i in (origin, origin + 1))
        closed = [s for s in range(first, last) if not self._words[s * HEAD_WORDS + STATE] & 1]
        for slot in closed:
            punch(self.fd, self._bodies + slot * self._stride, self._stride)
        return deque(closed)

    def free(self, rid: int) -> None:
        """Close the request's slot and give its memory back. Raises StaleRequest."""
        head = self._head(rid)
        slot = rid & SLOT_MASK
        self._words[head + STATE] = rid >> SLOT_BITS << 1
        punch(self.fd, self._bodies + slot * self._stride, self._stride)
        free = self._free.get(self._words[head + _ORIGIN])
        if free is not None:
            free.append(slot)

    def linger(self, rid: int, tenths: int) -> None:
        """Keep a finished request for clients that come back; nobody recovers it. tenths: when it ended, in
        tenths of a second of the monotonic clock. Raises StaleRequest."""
        self._put(rid, _LINGERS, max(tenths & LOW, 1))

    def lingers(self, rid: int) -> int:
        """What `linger` wrote, 0 before. Raises StaleRequest."""
        return self._value(rid, _LINGERS)

    def follow(self, rid: int, tenths: int) -> None:
        """Note when a client last followed it: `tenths` of a second of the monotonic clock. Raises
        StaleRequest."""
        self._put(rid, _FOLLOWED, tenths & LOW)

    def followed(self, rid: int) -> int:
        """What `follow` noted last, 0 before. Raises StaleRequest."""
        return self._value(rid, _FOLLOWED)

    def set_billed(self, rid: int, tokens: int) -> None:
        """Note for how many tokens its key was charged. Raises StaleRequest."""
        self._put(rid, _BILLED, tokens)

    def billed(self, rid: int) -> int:
        """What `set_billed` noted last, 0 before. Raises StaleRequest."""
        return self._value(rid, _BILLED)

    # The tokenizer's side.

    def put_request(self, rid: int, record: bytes) -> None:
        """Store the normalised request, once. Raises ValueError when it is longer than the layout allows,
        OSError (ENOSPC) when /dev/shm is full, StaleRequest."""
        head = self._head(rid)
        if len(record) > self.layout.request_bytes:
            raise ValueError(f"a request of {len(record)} bytes exceeds {self.layout.request_bytes}")
        write(self.fd, record, self._bodies + (rid & SLOT_MASK) * self._stride)
        self._words[head + _REQUEST_BYTES] = (rid >> SLOT_BITS & LOW) << 32 | len(record)

    def request(self, rid: int) -> bytes:
        """The normalised request, b"" before it was put. Raises StaleRequest."""
        length = self._value(rid, _REQUEST_BYTES)
        return self._read(rid, self._bodies, 0, length)

    def set_delivered(self, served: Iterable[tuple[int, int]], origin: int) -> None:
        """Note how many output tokens clients have been served, as (request id, tokens), of the open requests
        that frontend `origin` claimed."""
        words, end = self._words, self.layout.slots * HEAD_WORDS
        for rid, n in served:
            head = (rid & SLOT_MASK) * HEAD_WORDS
            generation = rid >> SLOT_BITS
            if head < end and words[head] == generation << 1 | 1 and words[head + _ORIGIN] == origin:
                words[head + _DELIVERED] = (generation & LOW) << 32 | n

    def delivered(self, rid: int) -> int:
        """Output tokens that the client has been served. Raises StaleRequest."""
        return self._value(rid, _DELIVERED)

    # The balancer's side.

    def assign(self, rid: int, replica: int, dispatch: int) -> None:
        """Note which replica the request goes to, and the number of that dispatch. Raises StaleRequest."""
        head, tag = self._head(rid), (rid >> SLOT_BITS & LOW) << 32
        self._words[head + _DISPATCH] = tag | dispatch
        self._words[head + _REPLICA] = tag | replica + 1

    def assignment(self, rid: int) -> tuple[int, int] | None:
        """Replica and dispatch number, None while there are none. Raises StaleRequest."""
        replica = self._value(rid, _REPLICA)
        return (replica - 1, self._value(rid, _DISPATCH)) if replica else None

    # The scheduler's side, beside the tokens.

    def note_weights(self, rid: int, made: Made) -> None:
        """Note which weights made its tokens, those that are about to be committed too. Raises
        StaleRequest."""
        head, tag = self._head(rid), (rid >> SLOT_BITS & LOW) << 32
        self._words[head + _FIRST_WEIGHTS] = tag | made.first
        self._words[head + _MADE_BY] = tag | made.bits

    def weights(self, rid: int) -> Made:
        """What `note_weights` noted. Raises StaleRequest."""
        return Made(self._value(rid, _FIRST_WEIGHTS), self._value(rid, _MADE_BY))

    # Everybody's.

    def origin(self, rid: int) -> int:
        """Number of the frontend that claimed it. Raises StaleRequest."""
        value: int = self._words[self._head(rid) + _ORIGIN]
        return value

    def is_current(self, rid: int) -> bool:
        """Whether the request is open."""
        slot = rid & SLOT_MASK
        state = rid >> SLOT_BITS << 1 | 1
        return slot < self.layout.slots and self._words[slot * HEAD_WORDS + STATE] == state

    def open_rids(self, *, lingering: bool = False) -> list[int]:
        """Ids of all open requests, in slot order; with those that only linger, if asked for."""
        heads = np.frombuffer(self._mapping.data, np.uint64, self.layout.slots * HEAD_WORDS)
        states = heads[STATE::HEAD_WORDS].copy()
        is_open = (states & np.uint64(1)).astype(np.bool_)
        if not lingering:
            tags = (states >> np.uint64(1) & np.uint64(LOW)) << np.uint64(32)
            is_open &= heads[_LINGERS::HEAD_WORDS] <= tags
        slots = np.flatnonzero(is_open)
        return [request_id(int(slot), int(states[slot]) >> 1) for slot in slots]
