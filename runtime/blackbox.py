"""What an actor leaves for others to see: meters, and tapes of its trace and its log.

The supervisor makes one box for each actor and keeps it, so that what an actor wrote is there after it was
killed, and its next incarnation goes on writing behind it. The actor writes without a lock or a system call;
whoever reads never disturbs it. A tape overwrites its own past.

      line 0       meters         trace            log
    [ settings | u64 words | head | records | head | lines ]
      supervisor   actor          actor            actor
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Sequence

from protocols.errors import PeerError
from protocols.meters import METER_WORDS, NAMED, Count, Histogram, Named
from protocols.spans import RECORD, RECORD_BYTES, SpanName
from runtime import segment

TRACE_BYTES = 8192 * RECORD_BYTES
LOG_BYTES = 64 * 1024

_METERS_AT = segment.LINE
_TRACE_AT = _METERS_AT + METER_WORDS * segment.WORD
_LOG_AT = _TRACE_AT + segment.LINE + TRACE_BYTES
BOX_BYTES = _LOG_AT + segment.LINE + LOG_BYTES

SAMPLE_ONE = 1 << 32
"""The value of `Setting.SAMPLE` at which every request is traced."""
_RESERVED, _TAIL = 0, 1


class Setting(enum.IntEnum):
    """Index of a word that the supervisor writes, and that outlives the actor. SAMPLE: how many of SAMPLE_ONE
    requests are traced. RECORDING: everything is traced while it is not 0. LEVEL: what is logged, from this
    number of the standard library's levels on; 0 as the options say."""

    SAMPLE = 0
    RECORDING = 1
    LEVEL = 2


class Tape:
    """Bytes in the order they were written; the latest `capacity` of them can be read. One writer.

    Positions only grow. The writer says how far it is about to overwrite (RESERVED), writes, then publishes
    (TAIL). A reader copies what TAIL promises, then drops what RESERVED says may be overwritten by then.
    """

    def __init__(self, area: memoryview) -> None:
        self._words = area[: segment.LINE].cast("Q")
        self._data = area[segment.LINE :]
        self.capacity = len(self._data)
        self._end = self._words[_TAIL]

    def append(self, data: bytes) -> None:
        """Write; `data` is shorter than the tape."""
        begin, words = self._end, self._words
        end = words[_RESERVED] = begin + len(data)
        at = begin % self.capacity
        room = self.capacity - at
        self._data[at : at + len(data)] = data[:room]
        if len(data) > room:
            self._data[: len(data) - room] = data[room:]
        words[_TAIL] = self._end = end

    def mend(self) -> None:
        """Fill with zeros what a writer that was killed has announced and not published. A new writer begins
        with this."""
        self.append(bytes(self._words[_RESERVED] - self._words[_TAIL]))

    @property
    def end(self) -> int:
        """Position behind the latest byte."""
        return self._words[_TAIL]

    def read(self, since: int = 0) -> tuple[int, bytes]:
        """What was written from position `since` on, as far as it is still there, and where that begins."""
        tail = self._words[_TAIL]
        begin = max(since, tail - self.capacity, 0)
        if begin >= tail:
            return tail, b""
        at, size = begin % self.capacity, tail - begin
        copied = bytes(self._data[at : at + size])
        copied += bytes(self._data[: size - len(copied)])
        lost = min(max(self._words[_RESERVED] - self.capacity - begin, 0), size)
        return begin + lost, copied[lost:]

    def release(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._data.release()


class BlackBox:
    """One actor's box. `Mapping` behind an inherited descriptor, or plain memory where nobody else looks."""

    def __init__(
        self, memory: memoryview, mapping: segment.Mapping | None = None, incarnation: int = 0
    ) -> None:
        self._mapping = mapping
        self._settings = memory[:_METERS_AT].cast("Q")
        self._meters = memory[_METERS_AT:_TRACE_AT].cast("Q")
        self._incarnation = incarnation & 0xFFFF
        self.trace = Tape(memory[_TRACE_AT:_LOG_AT])
        self.log = Tape(memory[_LOG_AT:BOX_BYTES])

    @classmethod
    def create(cls) -> BlackBox:
        """A new box of zeros. Raises StartError when /dev/shm has no room."""
        return cls._mapped(segment.create(BOX_BYTES), 0)

    @classmethod
    def attach(cls, fd: int, incarnation: int) -> BlackBox:
        """The box behind an inherited descriptor, which the object owns from now on."""
        segment.require_ordered_stores()
        if segment.size_of(fd) != BOX_BYTES:
            raise PeerError(f"descriptor {fd} is no black box")
        box = cls._mapped(fd, incarnation)
        box.trace.mend()
        box.log.mend()
        return box

    @classmethod
    def private(cls) -> BlackBox:
        """A box that no other process sees."""
        return cls(memoryview(bytearray(BOX_BYTES)))

    @classmethod
    def _mapped(cls, fd: int, incarnation: int) -> BlackBox:
        mapping = segment.Mapping(fd, BOX_BYTES)
        return cls(memoryview(mapping.data), mapping, incarnation)

    @property
    def fd(self) -> int:
        """The descriptor; -1 for a private box."""
        return self._mapping.fd if self._mapping is not None else -1

    def setting(self, setting: Setting) -> int:
        """A word of the supervisor's."""
        return self._settings[setting]

    def set(self, setting: Setting, value: int) -> None:
        """Set one; only the supervisor does."""
        self._settings[setting] = value

    @property
    def recording(self) -> int:
        """Not 0 while everything is traced."""
        return self._settings[1]

    def span(
        self,
        kind: SpanName,
        rid: int,
        start: int,
        duration: int,
        items: int = 0,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        d: int = 0,
    ) -> None:
        """Note a record of a trace."""
        self.trace.append(RECORD.pack(kind, self._incarnation, items, rid, start, duration, a, b, c, d))

    def observe(self, histogram: Histogram, value: int, times: int = 1) -> None:
        """Count `value`, in raw units, so many times."""
        meters = self._meters
        meters[histogram.first + bisect_left(histogram.bounds, value)] += times
        meters[histogram.sum] += value * times

    def count(self, counter: Count, n: int = 1) -> None:
        """Add to a counter."""
        self._meters[counter] += n

    def name(self, what: Named, ids: Sequence[int]) -> None:
        """Write a list of ids, as far as there is room."""
        words = [*ids[:NAMED], *[0] * (NAMED - len(ids))]
        for index, id in enumerate(words, what):
            self._meters[index] = id

    def named(self, what: Named) -> list[int]:
        """The ids of a list."""
        return [id for id in self._meters[what : what + NAMED] if id]

    def buckets(self, histogram: Histogram) -> tuple[list[int], int]:
        """How many values fell into each bucket, the last one beyond all bounds; and their sum."""
        return self._meters[histogram.first : histogram.sum].tolist(), self._meters[histogram.sum]

    def counted(self, counter: Count) -> int:
        """A counter's value."""
        return self._meters[counter]

    def close(self) -> None:
        """Unmap and close the descriptor."""
        self.trace.release()
        self.log.release()
        self._settings.release()
        self._meters.release()
        if self._mapping is not None:
            self._mapping.close()
