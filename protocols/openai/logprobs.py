"""Log probabilities as each endpoint shows them."""

from __future__ import annotations

import math

import msgspec

from protocols.messages import TextLogprob

FLOOR = -9999.0
"""Shown in place of minus infinity, which JSON cannot carry (the other engines' figure)."""


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """The chosen token of a position, and the most likely ones, best first."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


def finite(value: float) -> float:
    """`value` as JSON can carry it."""
    return value if math.isfinite(value) and value > FLOOR else FLOOR


def token_logprob(entry: TextLogprob) -> TokenLogprob:
    """The document of one position, for chat and for responses."""
    text, raw, value = entry.token
    top = [TopLogprob(t, finite(p), list(b)) for t, b, p in entry.top]
    return TokenLogprob(text, finite(value), list(raw), top)
