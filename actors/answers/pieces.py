"""What an answer is taken apart into, piece by piece."""

from __future__ import annotations

from typing import NamedTuple


class Thought(NamedTuple):
    """Text of the model's reasoning."""

    text: str


class Text(NamedTuple):
    """Text for the reader."""

    text: str


class CallBegun(NamedTuple):
    """A call of function `name` begins, the one with that number in the answer."""

    number: int
    name: str


class CallArguments(NamedTuple):
    """More of a call's arguments, the JSON as the model writes it."""

    number: int
    text: str


class CallEnded(NamedTuple):
    """Nothing more comes for a call."""

    number: int


Piece = Thought | Text | CallBegun | CallArguments | CallEnded


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` could be the beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def held_back(text: str, tag: str) -> int:
    """How many characters at the end of `text` could be the beginning of `tag`, and the space before it."""
    kept = len(text) - overlap(text, tag)
    return len(text) - len(text[:kept].rstrip())
