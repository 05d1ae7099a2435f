"""The board: a shared table of u64 words, one row an actor, each word with exactly one writer.

Columns are `protocols.board.Column`. Readers never lock and never ask: a value is one aligned 8-byte
load, so it is some value that its writer stored, though two columns may be of different moments.
"""

from __future__ import annotations

from protocols.board import COLUMNS, Column
from protocols.errors import PeerError
from runtime import segment

_ROW_BYTES = COLUMNS * segment.WORD
_MASK = 2**64 - 1


class Row:
    """One actor's row: `row[Column.RUNNING]` reads, assignment and `add` write."""

    __slots__ = ("_words",)

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def __getitem__(self, column: Column) -> int:
        value: int = self._words[column]
        return value

    def __setitem__(self, column: Column, value: int) -> None:
        self._words[column] = value

    def add(self, column: Column, n: int = 1) -> None:
        """Count: only the column's writer may, as this is a load and a store."""
        self._words[column] = (self._words[column] + n) & _MASK


class Board:
    """The whole table, `rows` rows of 512 bytes."""

    def __init__(self, mapping: segment.Mapping, rows: int) -> None:
        self.fd = mapping.fd
        self.rows = rows
        self._mapping = mapping
        self._views: list[memoryview] = []

    @classmethod
    def create(cls, rows: int) -> Board:
        """A new table of zeros. Raises StartError when /dev/shm has no room."""
        size = rows * _ROW_BYTES
        return cls(segment.Mapping(segment.create(size), size), rows)

    @classmethod
    def attach(cls, fd: int) -> Board:
        """The table behind an inherited descriptor, which the object owns from now on."""
        segment.require_ordered_stores()
        size = segment.size_of(fd)
        if not size or size % _ROW_BYTES:
            raise PeerError(f"descriptor {fd} is no board: {size} bytes")
        return cls(segment.Mapping(fd, size), size // _ROW_BYTES)

    def row(self, index: int) -> Row:
        """Row `index`; IndexError when there is none. It is dead once the board is closed."""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of a board of {self.rows}")
        view = self._mapping.words[index * COLUMNS : (index + 1) * COLUMNS]
        self._views.append(view)
        return Row(view)

    def word(self, index: int, column: Column) -> memoryview:
        """One word of row `index`; whoever holds it lets go before the board is closed."""
        at = index * COLUMNS + column
        view = self._mapping.words[at : at + 1]
        self._views.append(view)
        return view

    def close(self) -> None:
        """Unmap and close the descriptor."""
        for view in self._views:
            view.release()
        self._mapping.close()
