"""The ledger: what every open request is and what has come out of it. Commit before expose.

Layout and writers: `protocols.ledger`. Heads are mapped and wholly allocated; bodies are reached only by
`pread` and `pwrite`, for which a full /dev/shm is an OSError (ENOSPC) and a hole reads as zeros,
where a load or store through a mapping would be a SIGBUS or would take memory for nothing.

A request id whose generation is not its slot's is stale: StaleRequest. Readers check the generation
before and after they copy, so they never return another request's bytes. A frontend frees a slot once
its finish is committed or nobody below ever knew of it; until then a late scheduler may write to it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from protocols.errors import PeerError, TroupeError
from protocols.ledger import (
    FINISH_BIT,
    HEAD_WORDS,
    MAX_TOKENS,
    TAIL_BIT,
    TAIL_TOKENS,
    TURN_BIT,
    Layout,
    Word,
)
from protocols.request import SLOT_BITS, Finish, request_id
from protocols.weights import Made
from runtime import segment
from runtime.failpoints import watched

_SLOT_MASK = (1 << SLOT_BITS) - 1
_LOW = 0xFFFF_FFFF
_STATE, _ORIGIN = int(Word.STATE), int(Word.ORIGIN)
_REQUEST_BYTES, _DELIVERED = int(Word.REQUEST_BYTES), int(Word.DELIVERED)
_COMMITTED, _EXTRA_A, _EXTRA_B = int(Word.COMMITTED), int(Word.EXTRA_A), int(Word.EXTRA_B)
_TAIL_HALF = 2 * Word.TAIL
_REPLICA, _DISPATCH = int(Word.REPLICA), int(Word.DISPATCH)
_LINGERS, _CACHED, _FOLLOWED = int(Word.LINGERS), int(Word.CACHED), int(Word.FOLLOWED)
_FIRST_WEIGHTS, _MADE_BY = int(Word.FIRST_WEIGHTS), int(Word.MADE_BY)
_BILLED = int(Word.BILLED)
_POINTS = {
    _STATE: "ledger.state",
    _REQUEST_BYTES: "ledger.request",
    _DELIVERED: "ledger.delivered",
    _COMMITTED: "ledger.commit",
    _EXTRA_A: "ledger.extras",
    _EXTRA_B: "ledger.extras",
    _REPLICA: "ledger.assign",
}
_FINISH_MASK = 7
_FINISHED = _FINISH_MASK << FINISH_BIT
_TAIL = 1 << TAIL_BIT
_IN_TAIL = TAIL_TOKENS - 1
"""Of a number of tokens, the part that a tail can hold."""
_TOKEN = struct.Struct("<i")

Ints = npt.NDArray[np.int32]

_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class StaleRequest(TroupeError):
    """The request of this id is gone: its slot is closed or serves another one."""


def _punch(fd: int, offset: int, length: int) -> None:
    """Give the memory behind a range back; it reads as zeros from now on."""
    if _libc.fallocate(fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write(fd: int, data: bytes, offset: int) -> None:
    """All of `data` at `offset`; OSError (ENOSPC) when /dev/shm is full."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


class Ledger:
    """One process's view of the ledger."""

    def __init__(self, mapping: segment.Mapping, layout: Layout, origins: int) -> None:
        self.fd = mapping.fd
        self.layout = layout
        self.origins = origins
        self._mapping = mapping
        self._words = watched(mapping.words, _POINTS, HEAD_WORDS)
        self._tails = memoryview(mapping.data).cast("i")
        self._free: dict[int, deque[int]] = {}
        self._bodies = layout.heads
        self._stride = layout.stride
        self._tokens_at = layout.heads + layout.tokens_at
        self._extras_at = layout.heads + layout.extras_at

    @classmethod
    def create(cls, layout: Layout, origins: int = 1) -> Ledger:
        """A new ledger, every slot free, for `origins` frontends. Raises StartError without room."""
        if not 0 < layout.slots <= _SLOT_MASK + 1:
            raise ValueError(f"a ledger has 1 to {_SLOT_MASK + 1} slots, not {layout.slots}")
        if layout.tokens > MAX_TOKENS or layout.extra_bytes > _LOW or layout.request_bytes > _LOW:
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
        generation = (self._words[head + _STATE] >> 1) + 1
        self._words[head + _ORIGIN] = origin
        self._words[head + _STATE] = generation << 1 | 1
        return request_id(slot, generation)

    def _rebuild(self, origin: int) -> deque[int]:
        """The closed slots of a range. A frontend killed inside `free` may have left memory in one."""
        if not 0 <= origin < self.origins:
            raise ValueError(f"frontend {origin} of {self.origins}")
        first, last = (self.layout.slots * i // self.origins for i in (origin, origin + 1))
        closed = [s for s in range(first, last) if not self._words[s * HEAD_WORDS + _STATE] & 1]
        for slot in closed:
            _punch(self.fd, self._bodies + slot * self._stride, self._stride)
        return deque(closed)

    def free(self, rid: int) -> None:
        """Close the request's slot and give its memory back. Raises StaleRequest."""
        head = self._head(rid)
        slot = rid & _SLOT_MASK
        self._words[head + _STATE] = rid >> SLOT_BITS << 1
        _punch(self.fd, self._bodies + slot * self._stride, self._stride)
        free = self._free.get(self._words[head + _ORIGIN])
        if free is not None:
            free.append(slot)

    def linger(self, rid: int, tenths: int) -> None:
        """Keep a finished request for clients that come back; nobody recovers it. tenths: when it ended, in
        tenths of a second of the monotonic clock. Raises StaleRequest."""
        self._words[self._head(rid) + _LINGERS] = (rid >> SLOT_BITS & _LOW) << 32 | max(tenths & _LOW, 1)

    def lingers(self, rid: int) -> int:
        """What `linger` noted, 0 before. Raises StaleRequest."""
        return self._value(rid, _LINGERS)

    def follow(self, rid: int, tenths: int) -> None:
        """Note when a client last followed it: `tenths` of a second of the monotonic clock. Raises
        StaleRequest."""
        self._words[self._head(rid) + _FOLLOWED] = (rid >> SLOT_BITS & _LOW) << 32 | tenths & _LOW

    def followed(self, rid: int) -> int:
        """What `follow` noted last, 0 before. Raises StaleRequest."""
        return self._value(rid, _FOLLOWED)

    def set_billed(self, rid: int, tokens: int) -> None:
        """Note for how many tokens its key was charged. Raises StaleRequest."""
        self._words[self._head(rid) + _BILLED] = (rid >> SLOT_BITS & _LOW) << 32 | tokens

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
        _write(self.fd, record, self._bodies + (rid & _SLOT_MASK) * self._stride)
        self._words[head + _REQUEST_BYTES] = (rid >> SLOT_BITS & _LOW) << 32 | len(record)

    def request(self, rid: int) -> bytes:
        """The normalised request, b"" before it was put. Raises StaleRequest."""
        length = self._value(rid, _REQUEST_BYTES)
        return self._read(rid, self._bodies, 0, length)

    def set_delivered(self, rid: int, n: int) -> None:
        """Note how many output tokens the client has been served. Raises StaleRequest."""
        self._words[self._head(rid) + _DELIVERED] = (rid >> SLOT_BITS & _LOW) << 32 | n

    def set_delivered_each(self, served: Iterable[tuple[int, int]], origin: int) -> None:
        """The same of many, (request id, tokens): of the open ones that frontend `origin` claimed."""
        words, end = self._words, self.layout.slots * HEAD_WORDS
        for rid, n in served:
            head = (rid & _SLOT_MASK) * HEAD_WORDS
            generation = rid >> SLOT_BITS
            if head < end and words[head] == generation << 1 | 1 and words[head + _ORIGIN] == origin:
                words[head + _DELIVERED] = (generation & _LOW) << 32 | n

    def delivered(self, rid: int) -> int:
        """Output tokens that the client has been served. Raises StaleRequest."""
        return self._value(rid, _DELIVERED)

    # The balancer's side.

    def assign(self, rid: int, replica: int, dispatch: int) -> None:
        """Note which replica the request goes to, and the number of that dispatch. Raises StaleRequest."""
        head, tag = self._head(rid), (rid >> SLOT_BITS & _LOW) << 32
        self._words[head + _DISPATCH] = tag | dispatch
        self._words[head + _REPLICA] = tag | replica + 1

    def assignment(self, rid: int) -> tuple[int, int] | None:
        """Replica and dispatch number, None while there are none. Raises StaleRequest."""
        replica = self._value(rid, _REPLICA)
        return (replica - 1, self._value(rid, _DISPATCH)) if replica else None

    # The scheduler's side.

    def commit(
        self,
        rid: int,
        tokens: Sequence[int],
        extras: bytes = b"",
        finish: Finish = Finish.NONE,
        cached: int = 0,
    ) -> None:
        """Append output tokens, what cannot be recomputed of them, and the finish reason: all or nothing.
        `cached`, prompt tokens served from the prefix cache, counts with the first commit only.

        Extras belong to tokens, or to the finish, of the same call. Raises ValueError where there are
        neither, when the request has finished, or when a limit of the layout would be exceeded; OSError
        (ENOSPC) when /dev/shm is full; StaleRequest. Nothing is committed then.
        """
        head, slot = self._head(rid), rid & _SLOT_MASK
        value = self._value(rid, _COMMITTED)
        count = value & MAX_TOKENS
        after = count + len(tokens)
        if value >> FINISH_BIT & _FINISH_MASK:
            raise ValueError(f"request {rid:#x} has finished")
        if after > self.layout.tokens:
            raise ValueError(f"request {rid:#x} would have {after} of at most {self.layout.tokens} tokens")
        if extras and not (tokens or finish):
            raise ValueError("extras belong to tokens or to the finish")
        at, tail = count & _IN_TAIL, value & _TAIL
        if len(tokens) == 1 and at < _IN_TAIL and (tail or not at):
            self._tails[2 * head + _TAIL_HALF + at] = tokens[0]
            tail = _TAIL
        elif tokens:
            before = self._in_tail(head, at) if tail else b""
            data = before + np.array(tokens, "<i4").tobytes()
            _write(self.fd, data, self._tokens_at + slot * self._stride + 4 * count - len(before))
            tail = 0
        if not value:
            self._words[head + _EXTRA_A] = 0
            self._words[head + _CACHED] = (rid >> SLOT_BITS & _LOW) << 32 | max(cached, 0)
        turn = value >> TURN_BIT
        if extras:
            turn = self._append(head, turn, extras, self._extras_at + slot * self._stride)
        value = turn << TURN_BIT | finish << FINISH_BIT | tail | after
        self._words[head + _COMMITTED] = (rid >> SLOT_BITS & _LOW) << 32 | value

    def note_weights(self, rid: int, made: Made) -> None:
        """Note which weights made its tokens, those that are about to be committed too. Raises
        StaleRequest."""
        head, tag = self._head(rid), (rid >> SLOT_BITS & _LOW) << 32
        self._words[head + _FIRST_WEIGHTS] = tag | made.first
        self._words[head + _MADE_BY] = tag | made.bits

    def weights(self, rid: int) -> Made:
        """What `note_weights` noted. Raises StaleRequest."""
        return Made(self._value(rid, _FIRST_WEIGHTS), self._value(rid, _MADE_BY))

    def commit_each(self, rids: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Append one output token to each of many requests that have some already: `commit` in a tight loop.
        Returns the indices of those that it leaves to `commit`, which says why where it cannot either."""
        left: list[int] = []
        full: set[int] = set()
        words, tails, end = self._words, self._tails, self.layout.slots * HEAD_WORDS
        for index, (rid, token) in enumerate(zip(rids, tokens, strict=True)):
            head, generation = (rid & _SLOT_MASK) * HEAD_WORDS, rid >> SLOT_BITS
            if head >= end or words[head] != generation << 1 | 1:
                left.append(index)
                continue
            value = words[head + _COMMITTED]
            count, at = value & MAX_TOKENS, value & _IN_TAIL
            if (
                value >> 32 != generation & _LOW
                or value & _FINISHED
                or not (0 < count < self.layout.tokens)
                or (at and not value & _TAIL)
                or rid in full
            ):
                left.append(index)
                continue
            tails[2 * head + _TAIL_HALF + at] = token
            if at < _IN_TAIL:
                words[head + _COMMITTED] = (value | _TAIL) + 1
            elif self._spill(head, count - _IN_TAIL):
                words[head + _COMMITTED] = value - _TAIL + 1
            else:  # what follows must not take its place
                full.add(rid)
                left.append(index)
        return left

    def _spill(self, head: int, first: int) -> bool:
        """Take a full tail to the token area, at index `first`; False when there is no memory for it."""
        slot = head // HEAD_WORDS
        try:
            tail = self._in_tail(head, TAIL_TOKENS)
            _write(self.fd, tail, self._tokens_at + slot * self._stride + 4 * first)
        except OSError:
            return False
        return True

    def _in_tail(self, head: int, tokens: int) -> bytes:
        """The first `tokens` tokens of the tail in the head that begins at word `head`."""
        start = 2 * head + _TAIL_HALF
        return self._tails[start : start + tokens].tobytes()

    def _append(self, head: int, turn: int, extras: bytes, area: int) -> int:
        """Write extras behind the true ones; returns the turn that will make them true."""
        length = self._words[head + _EXTRA_A + turn]
        if length + len(extras) > self.layout.extra_bytes:
            raise ValueError(f"{length + len(extras)} bytes of extras exceed {self.layout.extra_bytes}")
        _write(self.fd, extras, area + length)
        self._words[head + _EXTRA_B - turn] = length + len(extras)
        return 1 - turn

    # Everybody's.

    def committed(self, rid: int, start: int = 0) -> npt.NDArray[np.int32]:
        """Output tokens from index `start` on, a copy. Raises StaleRequest."""
        return self._tokens(rid, start)[1]

    def outcome(self, rid: int) -> tuple[npt.NDArray[np.int32], Finish]:
        """All output tokens and the finish reason as one commit published them. Raises StaleRequest."""
        value, tokens = self._tokens(rid, 0)
        return tokens, Finish(value >> FINISH_BIT & _FINISH_MASK)

    def _tokens(self, rid: int, start: int) -> tuple[int, Ints]:
        """The word COMMITTED, and the tokens from index `start` on that it speaks of."""
        while True:
            value = self._value(rid, _COMMITTED)
            count, at = value & MAX_TOKENS, value & _IN_TAIL if value & _TAIL else 0
            data = self._read(rid, self._tokens_at, 4 * start, 4 * (count - at))
            tail = self._in_tail(self._head(rid), at)
            if not at or (self._value(rid, _COMMITTED) ^ value) & ~_IN_TAIL == 0:  # else it has left the tail
                return value, np.frombuffer(data + tail[max(4 * (start - count + at), 0) :], "<i4")

    def cached(self, rid: int) -> int:
        """Prompt tokens that the prefix cache served, of a request with committed tokens. Raises
        StaleRequest."""
        return self._value(rid, _CACHED)

    def extras(self, rid: int) -> bytes:
        """The extras of the committed tokens. Raises StaleRequest."""
        while True:
            value = self._value(rid, _COMMITTED)
            length = self._words[self._head(rid) + _EXTRA_A + (value >> TURN_BIT)] if value else 0
            if self._value(rid, _COMMITTED) == value:  # else a commit came between the two words
                return self._read(rid, self._extras_at, 0, length)

    def finish(self, rid: int) -> Finish:
        """Why the request ended, NONE while it goes on. Raises StaleRequest."""
        return Finish(self._value(rid, _COMMITTED) >> FINISH_BIT & _FINISH_MASK)

    def origin(self, rid: int) -> int:
        """Number of the frontend that claimed it. Raises StaleRequest."""
        value: int = self._words[self._head(rid) + _ORIGIN]
        return value

    def is_current(self, rid: int) -> bool:
        """Whether the request is open."""
        slot = rid & _SLOT_MASK
        state = rid >> SLOT_BITS << 1 | 1
        return slot < self.layout.slots and self._words[slot * HEAD_WORDS + _STATE] == state

    def open_rids(self, *, lingering: bool = False) -> list[int]:
        """Ids of all open requests, in slot order; of those that only linger on request."""
        heads = np.frombuffer(self._mapping.data, np.uint64, self.layout.slots * HEAD_WORDS)
        states = heads[_STATE::HEAD_WORDS].copy()
        is_open = (states & np.uint64(1)).astype(np.bool_)
        if not lingering:
            tags = (states >> np.uint64(1) & np.uint64(_LOW)) << np.uint64(32)
            is_open &= heads[_LINGERS::HEAD_WORDS] <= tags
        slots = np.flatnonzero(is_open)
        return [request_id(int(slot), int(states[slot]) >> 1) for slot in slots]

    def close(self) -> None:
        """Unmap and close the descriptor."""
        self._tails.release()
        self._mapping.close()

    def _head(self, rid: int) -> int:
        """Index of the first word of the request's head. Raises StaleRequest."""
        head = (rid & _SLOT_MASK) * HEAD_WORDS
        if rid & _SLOT_MASK >= self.layout.slots or self._words[head] != rid >> SLOT_BITS << 1 | 1:
            raise StaleRequest(f"request {rid:#x} is gone")
        return head

    def _value(self, rid: int, word: int) -> int:
        """Lower half of a tagged word, 0 when it speaks of another generation."""
        value: int = self._words[self._head(rid) + word]
        return value & _LOW if value >> 32 == rid >> SLOT_BITS & _LOW else 0

    def _read(self, rid: int, area: int, start: int, end: int) -> bytes:
        """Bytes start .. end of an area, if they were still this request's when the copy was done."""
        offset = area + (rid & _SLOT_MASK) * self._stride
        data = bytearray()
        while start + len(data) < end:
            data += os.pread(self.fd, end - start - len(data), offset + start + len(data))
        self._head(rid)
        return bytes(data)
