"""The board: rows of words that every process sees at once."""

from __future__ import annotations

import os

import pytest

from protocols.board import COLUMNS, Column
from protocols.errors import PeerError
from runtime import segment
from runtime.board import Board


def test_rows_start_at_zero_and_are_seen_through_every_mapping() -> None:
    board = Board.create(4)
    other = Board.attach(os.dup(board.fd))
    assert other.rows == 4
    row = board.row(2)
    assert all(row[column] == 0 for column in Column)
    row[Column.RUNNING] = 17
    row.add(Column.MESSAGES_IN)
    row.add(Column.MESSAGES_IN, 4)
    seen = other.row(2)
    assert (seen[Column.RUNNING], seen[Column.MESSAGES_IN]) == (17, 5)
    assert [other.row(i)[Column.RUNNING] for i in range(4)] == [0, 0, 17, 0]
    other.close()
    board.close()


def test_a_word_holds_64_bits() -> None:
    board = Board.create(1)
    row = board.row(0)
    row[Column.STARTED_NS] = 2**64 - 1
    assert row[Column.STARTED_NS] == 2**64 - 1
    row.add(Column.STARTED_NS, 2)
    assert row[Column.STARTED_NS] == 1, "a counter wraps and does not raise"
    board.close()


def test_there_is_no_row_beyond_the_last() -> None:
    board = Board.create(2)
    for index in (-1, 2):
        with pytest.raises(IndexError, match="board of 2"):
            board.row(index)
    board.close()


def test_columns_fit_the_row_and_what_is_no_board_is_not_attached() -> None:
    assert max(Column) < COLUMNS
    with pytest.raises(PeerError, match="is no board"):
        Board.attach(segment.create(COLUMNS * 8 + 8))
