"""The memory of the ledger: heads that are mapped, bodies that are reached by system calls.

Heads are wholly allocated; bodies are reached only by `pread` and `pwrite`, for which a full /dev/shm is an
OSError (ENOSPC) and a hole reads as zeros, where a load or store through a mapping would be a SIGBUS or would
take memory for nothing. Readers check the generation before and after they copy.
"""

from __future__ import annotations

import ctypes
import os

from protocols.errors import TroupeError
from protocols.ledger import HEAD_WORDS, Layout, Word
from protocols.request import SLOT_BITS
from runtime import segment
from runtime.failpoints import watched

SLOT_MASK = (1 << SLOT_BITS) - 1
LOW = 0xFFFF_FFFF
STATE = int(Word.STATE)
_POINTS: dict[int, str] = {
    Word.STATE: "ledger.state",
    Word.REQUEST_BYTES: "ledger.request",
    Word.DELIVERED: "ledger.delivered",
    Word.COMMITTED: "ledger.commit",
    Word.EXTRA_A: "ledger.extras",
    Word.EXTRA_B: "ledger.extras",
    Word.REPLICA: "ledger.assign",
}

_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class StaleRequest(TroupeError):
    """The request of this id is gone: its slot is closed or serves another one."""


def punch(fd: int, offset: int, length: int) -> None:
    """Give the memory behind a range back; it reads as zeros from now on."""
    if _libc.fallocate(fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write(fd: int, data: bytes, offset: int) -> None:
    """All of `data` at `offset`; OSError (ENOSPC) when /dev/shm is full."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


class LedgerMemory:
    """Words of heads and bytes of bodies, each under the id of the request that it is asked for."""

    def __init__(self, mapping: segment.Mapping, layout: Layout, origins: int) -> None:
        self.fd = mapping.fd
        self.layout = layout
        self.origins = origins
        self._mapping = mapping
        self._words = watched(mapping.words, _POINTS, HEAD_WORDS)
        self._bodies = layout.heads
        self._stride = layout.stride
        self._tokens_at = layout.heads + layout.tokens_at
        self._extras_at = layout.heads + layout.extras_at

    def _head(self, rid: int) -> int:
        """Index of the first word of the request's head. Raises StaleRequest."""
        head = (rid & SLOT_MASK) * HEAD_WORDS
        if rid & SLOT_MASK >= self.layout.slots or self._words[head] != rid >> SLOT_BITS << 1 | 1:
            raise StaleRequest(f"request {rid:#x} is gone")
        return head

    def _value(self, rid: int, word: int) -> int:
        """Lower half of a tagged word, 0 when it speaks of another generation."""
        value: int = self._words[self._head(rid) + word]
        return value & LOW if value >> 32 == rid >> SLOT_BITS & LOW else 0

    def _put(self, rid: int, word: int, value: int) -> None:
        """Store a tagged word. Raises StaleRequest."""
        self._words[self._head(rid) + word] = (rid >> SLOT_BITS & LOW) << 32 | value

    def _read(self, rid: int, area: int, start: int, end: int) -> bytes:
        """Bytes start .. end of an area, if they were still this request's when the copy was done."""
        offset = area + (rid & SLOT_MASK) * self._stride
        data = bytearray()
        while start + len(data) < end:
            data += os.pread(self.fd, end - start - len(data), offset + start + len(data))
        self._head(rid)
        return bytes(data)

    def close(self) -> None:
        """Unmap and close the descriptor."""
        self._mapping.close()
