"""What single tokens decode to, and how the pieces of a sequence join: read off the tokenizer's decoder.

Three kinds of decoder, told apart by their parts (`Joint`):

    BYTES   every token is a few raw bytes, the text is their UTF-8 (byte-level BPE: GPT-2, Llama 3, Qwen)
    PIECES  every token is a piece of text, or one raw byte of a run (`<0xNN>`), perhaps with a different
            piece at the start of the text (SentencePiece, WordPiece)
    WINDOW  anything else: only decoding several tokens together tells
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders

Piece = str | bytes
"""str: text of its own. bytes: part of a character (BYTES), or of a run of raw bytes (PIECES);
b"" is a token that is not there: unknown to the tokenizer, or special and left out."""

_ANCHOR = "a"


class Joint(enum.Enum):
    """How the pieces of a sequence become its text."""

    BYTES = enum.auto()
    PIECES = enum.auto()
    WINDOW = enum.auto()


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the tokenizer's decoder does. single: decodes one token (PIECES only), None leaves it as it is.

    spaced: pieces after the first are set off by a space (a tokenizer without any decoder). fallback:
    `<0xNN>` tokens are raw bytes. strip: how many `strip_char` are cut off the start of the text.
    """

    joint: Joint
    single: Any = None
    spaced: bool = False
    fallback: bool = False
    strip: int = 0
    strip_char: str = " "


def read_shape(decoder: Any) -> Shape:
    """Classify a `tokenizers.decoders.Decoder` (or None) by its serialised form."""
    if decoder is None:
        return Shape(Joint.PIECES, spaced=True)
    parts = _flatten(json.loads(decoder.__getstate__()))
    kinds = [part["type"] for part in parts]
    if [kind for kind in kinds if kind != "Fuse"] == ["ByteLevel"]:
        return Shape(Joint.BYTES)
    return _piece_shape(parts, kinds) or Shape(Joint.WINDOW)


def _flatten(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [part for inner in state["decoders"] for part in _flatten(inner)]


def _piece_shape(parts: list[dict[str, Any]], kinds: list[str]) -> Shape | None:
    """Replace* | Strip* | Metaspace | WordPiece, then ByteFallback?, Fuse?, Strip? (left only), or None."""
    fallback, fused = "ByteFallback" in kinds, "Fuse" in kinds
    end = kinds.index("ByteFallback" if fallback else "Fuse") if fallback or fused else len(kinds)
    single = [_single(part) for part in parts[:end]]
    rest = parts[end + fallback + fused :]
    starts_differ = {"Metaspace", "WordPiece"} & set(kinds[:end])
    if (
        None in single
        or (fallback and starts_differ)
        or kinds[end + fallback : end + fallback + fused] != ["Fuse"] * fused
    ):
        return None
    match rest:
        case []:
            strip, char = 0, " "
        case [{"type": "Strip", "start": int(strip), "stop": 0, "content": str(char)}] if fused:
            pass
        case _:
            return None
    return Shape(Joint.PIECES, decoders.Sequence(single) if single else None, False, fallback, strip, char)


def _single(part: dict[str, Any]) -> Any:
    match part:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return decoders.Replace(pattern, content)
        case {"type": "Replace", "pattern": {"Regex": str(pattern)}, "content": str(content)}:
            return decoders.Replace(Regex(pattern), content)
        case {"type": "Strip", "content": str(content), "start": int(start), "stop": int(stop)}:
            return decoders.Strip(content, start, stop)
        case {
            "type": "Metaspace",
            "replacement": str(mark),
            "prepend_scheme": str(scheme),
            "split": bool(split),
        }:
            return decoders.Metaspace(mark, scheme, split)
        case {"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(cleanup)}:
            return decoders.WordPiece(prefix, cleanup)
        case _:
            return None


@functools.cache
def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet of byte-level BPE: printable Latin-1 stands for itself, the other bytes
    for the characters from U+0100 on, in order (`bytes_to_unicode` of openai/gpt-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(moved)}


class Table(dict[int, Piece]):
    """Token id -> Piece, filled as ids are looked up. first: pieces for the start of a text."""

    def __init__(self, pieces: Pieces, *, skip_special: bool, first: bool) -> None:
        super().__init__()
        self._pieces, self._skip_special, self._first = pieces, skip_special, first

    def __missing__(self, token: int) -> Piece:
        piece = self[token] = self._pieces.compute(token, skip_special=self._skip_special, first=self._first)
        return piece


class Pieces:
    """The pieces of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.shape = read_shape(tokenizer.decoder)
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(token for token, entry in added.items() if entry.special)
        self.special_texts = frozenset(entry.content for entry in added.values() if entry.special)
        self._tables = {
            (skip, first): Table(self, skip_special=skip, first=first)
            for skip in (False, True)
            for first in (False, True)
        }

    def table(self, *, skip_special: bool, first: bool = False) -> Table:
        """The shared table for these options."""
        return self._tables[skip_special, first]

    def compute(self, token: int, *, skip_special: bool, first: bool) -> Piece:
        """The piece of one token; see `Piece`."""
        text = self.tokenizer.id_to_token(token) if token >= 0 else None
        if text is None or (skip_special and text in self.special_texts):
            return b""
        if self.shape.joint is Joint.BYTES:
            return _whole(_level_bytes(text))
        return self._piece(text, first)

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes that a token stands for within a text; special tokens by their name."""
        if self.shape.joint is Joint.WINDOW:
            return self.tokenizer.decode([token], skip_special_tokens=False).encode() if token >= 0 else b""
        return as_bytes(self.table(skip_special=False)[token])

    def _piece(self, text: str, first: bool) -> Piece:
        shape = self.shape
        if shape.spaced:
            return text if first else " " + text
        if shape.single is not None:
            text = self._decode_single(text, first)
        return _raw_byte(text) if shape.fallback and _is_raw_byte(text) else text

    def _decode_single(self, text: str, first: bool) -> str:
        if first:
            return str(self.shape.single.decode([text]))
        anchor: str = self.shape.single.decode([_ANCHOR])
        return str(self.shape.single.decode([_ANCHOR, text]))[len(anchor) :]


def as_bytes(piece: Piece) -> bytes:
    """The piece's bytes."""
    return piece.encode() if isinstance(piece, str) else piece


def _level_bytes(text: str) -> bytes:
    table = _byte_of()
    values = [table.get(char) for char in text]
    if None in values:
        return text.encode()
    return bytes(value for value in values if value is not None)


def _whole(data: bytes) -> Piece:
    """The text of complete characters, else the bytes."""
    try:
        return data.decode() or b""
    except UnicodeDecodeError:
        return data


def _is_raw_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">") and _is_hex(text[3:5])


def _is_hex(digits: str) -> bool:
    return all(digit in "0123456789abcdefABCDEF" for digit in digits)


def _raw_byte(text: str) -> bytes:
    return bytes((int(text[3:5], 16),))
