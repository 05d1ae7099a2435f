"""What has come out of each request: committed tokens, what cannot be recomputed of them, why it ended.

One word of the head publishes a commit whole (`protocols.ledger`), so whoever is killed before that store has
committed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from protocols.ledger import FINISH_BIT, HEAD_WORDS, MAX_TOKENS, TAIL_BIT, TAIL_TOKENS, TURN_BIT, Layout, Word
from protocols.request import SLOT_BITS, Finish
from runtime import segment
from runtime.ledger_memory import LOW, SLOT_MASK, LedgerMemory, write

_COMMITTED, _EXTRA_A, _EXTRA_B = int(Word.COMMITTED), int(Word.EXTRA_A), int(Word.EXTRA_B)
_CACHED = int(Word.CACHED)
_TAIL_HALF = 2 * Word.TAIL
_FINISH_MASK = 7
_FINISHED = _FINISH_MASK << FINISH_BIT
_TAIL = 1 << TAIL_BIT
_IN_TAIL = TAIL_TOKENS - 1
"""Mask for a number of tokens: the part of it that lies in the tail."""

Ints = npt.NDArray[np.int32]


class CommittedTokens(LedgerMemory):
    """The scheduler appends, everybody reads."""

    def __init__(self, mapping: segment.Mapping, layout: Layout, origins: int) -> None:
        super().__init__(mapping, layout, origins)
        self._tails = memoryview(mapping.data).cast("i")

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
        head, slot = self._head(rid), rid & SLOT_MASK
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
            write(self.fd, data, self._tokens_at + slot * self._stride + 4 * count - len(before))
            tail = 0
        if not value:
            self._words[head + _EXTRA_A] = 0
            self._words[head + _CACHED] = (rid >> SLOT_BITS & LOW) << 32 | max(cached, 0)
        turn = value >> TURN_BIT
        if extras:
            turn = self._append(head, turn, extras, self._extras_at + slot * self._stride)
        value = turn << TURN_BIT | finish << FINISH_BIT | tail | after
        self._words[head + _COMMITTED] = (rid >> SLOT_BITS & LOW) << 32 | value

    def commit_each(self, rids: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Append one output token to each of many requests that have some already: `commit` in a tight loop.
        Returns the indices of those that it leaves to `commit`, which says why where it cannot either."""
        left: list[int] = []
        full: set[int] = set()
        words, tails, end = self._words, self._tails, self.layout.slots * HEAD_WORDS
        for index, (rid, token) in enumerate(zip(rids, tokens, strict=True)):
            head, generation = (rid & SLOT_MASK) * HEAD_WORDS, rid >> SLOT_BITS
            if head >= end or words[head] != generation << 1 | 1:
                left.append(index)
                continue
            value = words[head + _COMMITTED]
            count, at = value & MAX_TOKENS, value & _IN_TAIL
            if (
                value >> 32 != generation & LOW
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
            write(self.fd, tail, self._tokens_at + slot * self._stride + 4 * first)
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
        write(self.fd, extras, area + length)
        self._words[head + _EXTRA_B - turn] = length + len(extras)
        return 1 - turn

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

    def close(self) -> None:
        """Unmap and close the descriptor."""
        self._tails.release()
        super().close()
