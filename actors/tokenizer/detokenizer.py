"""Incremental detokenisation: tokens in one by one, text out as soon as it can no longer change.

The text of an output is what decoding *prompt and output together* adds to the prompt's own text: spaces at
the seam are right, and a character that the prompt's last bytes began and the output finished is shown
once, whole. A part of a character is held back until it is complete, so U+FFFD appears
only where the finished text has it. Each stream costs O(1) a token, amortised:

    ByteStream    joins bytes and decodes UTF-8 (malformed bytes become U+FFFD as in Rust's
                  `from_utf8_lossy`, which the library uses: one for each maximal subpart)
    PieceStream   joins pieces; a run of raw bytes is held until it ends, because the library shows a run
                  with any malformed byte as U+FFFD throughout
    WindowStream  for decoders that only know whole sequences: decodes a short window twice, with and
                  without the new tokens (the prefix/read offsets of text-generation-inference and vLLM)
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol, assert_never

from actors.tokenizer.pieces import Joint, Piece, Pieces, Table, as_bytes

_CHARACTER = 4
"""Bytes of the longest UTF-8 sequence."""

_WINDOW = 6
"""Tokens of the prompt that a WindowStream keeps for context."""

_HELD = 16
"""Tokens that a WindowStream holds back at most for an unfinished character."""

REPLACEMENT = "\ufffd"


class TextStream(Protocol):
    """The text of one output. pending: right after opening, the prompt's unfinished last character."""

    pending: bytes

    def feed(self, token: int) -> str:
        """Text that `token` settles, perhaps none."""
        ...

    def flush(self) -> str:
        """The rest, at the end of the output."""
        ...


def open_stream(pieces: Pieces, prompt: Sequence[int], *, skip_special: bool) -> TextStream:
    """A stream for the output that follows `prompt` (ids, may be empty)."""
    match pieces.shape.joint:
        case Joint.BYTES:
            return ByteStream(pieces.table(skip_special=skip_special), prompt)
        case Joint.PIECES:
            return PieceStream(pieces, prompt, skip_special=skip_special)
        case Joint.WINDOW:
            return WindowStream(pieces, prompt, skip_special=skip_special)
        case other:
            assert_never(other)


def _unfinished(data: bytes) -> bytes:
    """The incomplete character at the end of `data`; only its last three bytes matter."""
    _, used = codecs.utf_8_decode(data, "replace", False)
    return data[used:]


class ByteStream:
    """Tokens are bytes."""

    __slots__ = ("_table", "pending")

    def __init__(self, table: Table, prompt: Sequence[int]) -> None:
        self._table = table
        tail = b""
        for token in reversed(prompt):
            tail = as_bytes(table[token]) + tail
            if len(tail) >= _CHARACTER:
                break
        self.pending = _unfinished(tail)

    def feed(self, token: int) -> str:
        """Complete characters so far."""
        piece = self._table[token]
        if self.pending:
            piece = self.pending + as_bytes(piece)
        elif isinstance(piece, str):
            return piece
        text, used = codecs.utf_8_decode(piece, "replace", False)
        self.pending = piece[used:]
        return text

    def flush(self) -> str:
        """U+FFFD where a character stayed unfinished."""
        rest, self.pending = self.pending, b""
        return rest.decode("utf-8", "replace")


class PieceStream:
    """Tokens are pieces of text, or raw bytes of a run; `pending` is the run."""

    __slots__ = ("_first", "_starting", "_strip", "_strip_char", "_table", "pending")

    def __init__(self, pieces: Pieces, prompt: Sequence[int], *, skip_special: bool) -> None:
        self._table = pieces.table(skip_special=skip_special)
        self._first: Table | None = pieces.table(skip_special=skip_special, first=True)
        self._strip, self._strip_char = pieces.shape.strip, pieces.shape.strip_char
        self._starting = True
        self.pending = b""
        self._skip_prompt(prompt)

    def _skip_prompt(self, prompt: Sequence[int]) -> None:
        for token in prompt:
            if not self._starting:
                break
            self.feed(token)
        tail: list[bytes] = []
        for token in reversed(prompt):
            piece = self._table[token]
            if isinstance(piece, str) or len(tail) == _CHARACTER:
                break
            if piece:
                tail.append(piece)
        self._end_prompt(_unfinished(b"".join(reversed(tail))))

    def _end_prompt(self, unfinished: bytes) -> None:
        """A prompt that is one run of raw bytes: what it completes counts as text before the output."""
        if self._starting and self.pending:
            self._first = None
            self._cut(self.pending[: len(self.pending) - len(unfinished)].decode("utf-8", "replace"))
        self.pending = unfinished

    def feed(self, token: int) -> str:
        """The token's piece, behind the run that it ends."""
        piece = self._table[token]
        if isinstance(piece, bytes):
            self.pending += piece
            return ""
        if self._starting:
            return self._start(token, piece)
        return self._settle() + piece if self.pending else piece

    def flush(self) -> str:
        """The run at the end."""
        text = self._settle()
        return self._cut(text) if self._starting else text

    def _start(self, token: int, piece: Piece) -> str:
        """At the start of the text pieces differ, and spaces are cut off."""
        if self._first is not None and not self.pending:
            piece = self._first[token]
        self._first = None
        text = self._settle() + str(piece)
        return self._cut(text)

    def _cut(self, text: str) -> str:
        while self._strip and text.startswith(self._strip_char):
            text, self._strip = text[1:], self._strip - 1
        if text:
            self._strip = 0
        self._starting = self._strip > 0
        return text

    def _settle(self) -> str:
        run, self.pending = self.pending, b""
        try:
            return run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(run)


class WindowStream:
    """Only sequences of tokens have a text."""

    __slots__ = ("_decode", "_hidden", "_ids", "_read", "pending")

    def __init__(self, pieces: Pieces, prompt: Sequence[int], *, skip_special: bool) -> None:
        self._decode = pieces.tokenizer.decode
        self._hidden = pieces.special if skip_special else frozenset()
        self._ids = [token for token in prompt[-_WINDOW:] if token not in self._hidden]
        self._read = len(self._ids)
        self.pending = b""

    def feed(self, token: int) -> str:
        """What the window's text gained, unless it ends in the middle of a character."""
        if token in self._hidden:
            return ""
        self._ids.append(token)
        gained = self._gained()
        if (not gained or gained.endswith(REPLACEMENT)) and len(self._ids) - self._read < _HELD:
            return ""
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return gained

    def flush(self) -> str:
        """What is left."""
        gained = self._gained()
        self._read = len(self._ids)
        return gained

    def _gained(self) -> str:
        before = self._text(self._ids[: self._read])
        after = self._text(self._ids)
        known = before if after.startswith(before) else before.rstrip(REPLACEMENT)
        return after[len(known) :]

    def _text(self, ids: list[int]) -> str:
        return str(self._decode(ids, skip_special_tokens=False))
