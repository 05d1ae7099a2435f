"""A single-producer single-consumer byte ring in shared memory: how mail crosses processes.

Positions count bytes since the ring was made and never wrap; the byte at position p lies at p modulo
the capacity. The producer owns `tail`, the consumer owns `head`, each in a cache line of its own:

    0         head             tail                    head + capacity
    |  read   |  unread records |  free                 |

    record:  length u32  | CRC32 u32    | sequence u64 | incarnation u32 | 0 u32 | payload, up to 8 bytes
    padding: 2**32 - 1   | position u32 | anything, up to the end of the buffer

A record's sequence number is the position of its first byte, as in TCP: it is contiguous exactly when it
equals the reader's head, a record left over from an earlier lap never fits, and a new incarnation of
the producer needs nothing but `tail` to go on. The CRC is seeded with length and incarnation, so it vouches
for the whole record. `tail` is stored last: a producer killed anywhere inside a write leaves nothing
visible. The consumer copies out, checks, and then stores `head`; killed before that store, its next
incarnation reads the record again.

Nothing here waits, locks or rings a bell; rings outlive the processes at their ends.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import partial
from zlib import crc32

from protocols.errors import PeerError
from runtime import segment
from runtime.failpoints import trap, watched
from runtime.native import End, native

_MAGIC = 0x1001_6E69_5265_7075
_MAGIC_WORD, _CAPACITY_WORD, _TAIL, _HEAD = 0, 1, 8, 16
_DATA = 256
"""Byte offset of position 0: the header's four cache lines come first."""
_SLACK = 32
"""Bytes behind the last position, so that a header may be looked at anywhere."""

_RECORD = struct.Struct("@IIQI4x")
_PAD = struct.Struct("@II")
_pack_record, _unpack_record = _RECORD.pack_into, _RECORD.unpack_from
_pack_pad, _unpack_pad = _PAD.pack_into, _PAD.unpack_from
_OVERHEAD = _RECORD.size
_PADDING = 0xFFFF_FFFF
_LOW = 0xFFFF_FFFF
MINIMUM = 128
"""Smallest capacity of a ring in bytes."""
BATCH_BYTES = 1 << 17
"""Bytes after which a batch ends: what is read, decoded and handled together stays in the cache."""


Batch = tuple[int, list[bytes]]
"""Records that were read together: the incarnation that wrote them, and their payloads."""


class PythonEnd:
    """One end of a ring where nothing is compiled: it declines everything."""

    __slots__ = ("head", "head_seen", "tail")

    def __init__(self, words: memoryview) -> None:
        self.tail = words[_TAIL]
        self.head = self.head_seen = words[_HEAD]

    def write(self, _payload: bytes, _incarnation: int, /) -> bool:
        """Leave it to the ring."""
        return False

    def read(self, _limit: int, /) -> bool:
        """Leave it to the ring."""
        return False

    def release(self) -> None:
        """It holds nothing."""


class Ring:
    """One end (or both, in one process) of a ring. Take a new `attach` for a new incarnation: an
    object remembers the cursor that it owns.

    `write_nowait` and `read_batch` leave what is in order to `runtime/native.cpp`, where that could be
    compiled, and do themselves what it declines.
    """

    __slots__ = ("_data", "_end", "_mapping", "_words", "capacity", "fd", "limit")

    def __init__(self, mapping: segment.Mapping, capacity: int) -> None:
        self.fd = mapping.fd
        self.capacity = capacity
        self.limit = capacity // 2 - _OVERHEAD
        self._mapping = mapping
        self._data = mapping.data
        self._words = watched(mapping.words, {_TAIL: "ring.tail", _HEAD: "ring.head"}, len(mapping.words))
        compiled = native()
        self._end: End = compiled.End(mapping.data, capacity, trap) if compiled else PythonEnd(mapping.words)
        if not self._is_near(self._end.tail, self._end.head):
            self._end.tail = self._end.head

    @classmethod
    def create(cls, capacity: int) -> Ring:
        """A new empty ring of `capacity` bytes (a multiple of 8, at least 128), wholly allocated.

        Raises StartError when /dev/shm has no room or the machine's stores are not ordered.
        """
        if capacity % 8 or capacity < MINIMUM:
            raise ValueError(f"a ring's capacity is a multiple of 8 and at least {MINIMUM}, not {capacity}")
        size = _DATA + capacity + _SLACK
        mapping = segment.Mapping(segment.create(size), size)
        mapping.words[_CAPACITY_WORD] = capacity
        mapping.words[_MAGIC_WORD] = _MAGIC
        return cls(mapping, capacity)

    @classmethod
    def attach(cls, fd: int) -> Ring:
        """The ring behind an inherited descriptor, which the object owns from now on.

        Raises PeerError when it is no ring, StartError on a machine without ordered stores.
        """
        segment.require_ordered_stores()
        size = segment.size_of(fd)
        if size < _DATA + MINIMUM + _SLACK:
            raise PeerError(f"descriptor {fd} is no ring: {size} bytes")
        mapping = segment.Mapping(fd, size)
        magic, capacity = mapping.words[_MAGIC_WORD], mapping.words[_CAPACITY_WORD]
        if magic != _MAGIC or _DATA + capacity + _SLACK != size:
            raise PeerError(
                f"descriptor {fd} is no ring: magic {magic:#x}, capacity {capacity} in {size} bytes"
            )
        return cls(mapping, capacity)

    def write_nowait(self, payload: bytes, incarnation: int) -> bool:
        """Publish one record; False, and nothing written, when there is no room for it now.

        Raises ValueError for a payload above `limit` bytes, which could never be sure to fit.
        """
        return self._end.write(payload, incarnation) or self._write(payload, incarnation)

    def _write(self, payload: bytes, incarnation: int) -> bool:
        end, length, capacity = self._end, len(payload), self.capacity
        if length > self.limit:
            raise ValueError(f"a message of {length} bytes exceeds this ring's limit of {self.limit}")
        tail = end.tail
        at = tail % capacity
        size = (length + _OVERHEAD + 7) & ~7
        pad = capacity - at if at + size > capacity else 0
        if tail + pad + size > end.head_seen + capacity and not self._room(pad + size):
            return False
        if pad:
            _pack_pad(self._data, _DATA + at, _PADDING, tail & _LOW)
            tail += pad
            at = 0
        start = _DATA + at
        checksum = crc32(payload, length ^ incarnation)
        _pack_record(self._data, start, length, checksum, tail, incarnation)
        start += _OVERHEAD
        self._data[start : start + length] = payload
        self._words[_TAIL] = end.tail = tail + size
        return True

    def _room(self, size: int) -> bool:
        """Look where the consumer really is: whether `size` bytes fit behind the tail."""
        head, tail = self._words[_HEAD], self._end.tail
        if not head <= tail <= head + self.capacity:
            raise PeerError(f"the consumer's cursor {head} is not near the tail {tail}")
        self._end.head_seen = head
        return tail + size <= head + self.capacity

    def read_batch(self, limit: int) -> Batch | None:
        """Take up to `limit` unread records of one incarnation or about BATCH_BYTES, publishing `head` once;
        None when there is none.

        Raises PeerError when what lies there first is not a whole record of this ring; nothing is consumed
        then, and `resync` is the way on. Good records before a bad one are returned first.
        """
        batch = self._end.read(limit)
        return self._read(limit) if isinstance(batch, bool) else batch

    def _read(self, limit: int) -> Batch | None:
        end, head, tail, capacity = self._end, self._end.head, self._words[_TAIL], self.capacity
        if head == tail:
            return None
        if tail - head > capacity or tail < head or tail % 8:
            raise PeerError(f"the producer's cursor {tail} is not near the head {head}")
        incarnation, payload, after = self._record(head, tail)
        payloads = [payload]
        stop = min(tail, after - len(payload) + BATCH_BYTES)
        while after < stop and len(payloads) < limit:
            try:
                writer, payload, behind = self._record(after, tail)
            except PeerError:
                break
            if writer != incarnation:
                break
            payloads.append(payload)
            after = behind
        self._words[_HEAD] = end.head = after
        return incarnation, payloads

    def _record(self, head: int, tail: int) -> tuple[int, bytes, int]:
        """Copy and check the record at `head`, behind padding perhaps: its incarnation, its payload, and the
        position after it. Raises PeerError."""
        at = head % self.capacity
        length, checksum, sequence, incarnation = _unpack_record(self._data, _DATA + at)
        if length == _PADDING:
            return self._record(self._skip_padding(head, tail), tail)
        size = (length + _OVERHEAD + 7) & ~7
        if sequence != head:
            raise PeerError(f"record at position {head} carries sequence {sequence}")
        if size > tail - head or size > self.capacity - at:
            raise PeerError(f"record at position {head} claims {length} bytes, more than lie there")
        start = _DATA + _OVERHEAD + at
        payload = self._data[start : start + length]
        if crc32(payload, length ^ incarnation) != checksum:
            raise PeerError(f"record at position {head} fails its checksum")
        return incarnation, payload, head + size

    def _skip_padding(self, head: int, tail: int) -> int:
        """The position after the padding record at `head`: the start of the next lap."""
        at = head % self.capacity
        mark, low = _unpack_pad(self._data, _DATA + at)
        after = head + self.capacity - at
        if mark != _PADDING or low != head & _LOW or after >= tail:
            raise PeerError(f"padding at position {head} is not whole")
        return after

    def resync(self) -> int:
        """Give up everything unread after a PeerError; returns the bytes skipped.

        Record boundaries are lost with a bad length, so the next sure one is the tail. Where the tail
        itself is nonsense nothing is skipped: the producer's next record stores it right again.
        """
        tail = self._words[_TAIL]
        head = self._end.head
        if not self._is_near(tail, head):
            return 0
        self._words[_HEAD] = self._end.head = tail
        return tail - head

    def _is_near(self, tail: int, head: int) -> bool:
        """Whether a tail can be right. A producer that finds another begins where the consumer stands."""
        return tail % 8 == 0 and head <= tail <= head + self.capacity

    def used(self) -> int:
        """Bytes unread now, padding included; any process may ask."""
        return max(0, self._words[_TAIL] - self._words[_HEAD])

    def close(self) -> None:
        """Unmap and close the descriptor."""
        self._end.release()
        self._mapping.close()


def watcher(lanes: Iterable[object]) -> Callable[[int], object]:
    """A function that waits awake for mail in any of the lanes, up to so many nanoseconds, and lets others
    have the processor meanwhile. Where nothing is compiled it returns at once."""
    compiled = native()
    ends = tuple(lane._end for lane in lanes if isinstance(lane, Ring))
    if compiled is None or any(isinstance(end, PythonEnd) for end in ends):
        return lambda _: None
    return partial(compiled.watch, ends)
