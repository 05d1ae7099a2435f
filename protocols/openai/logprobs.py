"""Log probabilities as each endpoint shows them."""

from __future__ import annotations

import math

import msgspec

from protocols.messages import TextLogprob

FLOOR = -9999.0
"""Shown in place of minus infinity, which JSON cannot carry (the other engines' figure)."""


class TopLogprob(msgspec.Struct, frozen=True, gc=False):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """The chosen token of a position, and the most likely ones, best first."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class PromptLogprob(msgspec.Struct, frozen=True):
    """A token that stands, or could stand, at a position of the prompt. rank: 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = dict[str, PromptLogprob]
"""A position of the prompt: the token there and the most likely ones, by id."""


def prompt_logprobs(entries: list[TextLogprob], top: int) -> list[PromptLogprobs | None]:
    """All positions of a prompt, as vLLM shows them; None for the first, which nothing predicts."""
    return [None, *(_position(entry, top) for entry in entries[1:])]


def _position(entry: TextLogprob, top: int) -> PromptLogprobs:
    best = zip(entry.ids[1 : top + 1], entry.top, strict=False)
    shown = {str(id): PromptLogprob(finite(p), i + 1, text) for i, (id, (text, _, p)) in enumerate(best)}
    text, _, value = entry.token
    return {str(entry.ids[0]): PromptLogprob(finite(value), entry.rank, text)} | shown


def finite(value: float) -> float:
    """`value` as JSON can carry it."""
    return value if math.isfinite(value) and value > FLOOR else FLOOR


def token_logprob(entry: TextLogprob) -> TokenLogprob:
    """The document of one position, for chat and for responses."""
    text, raw, value = entry.token
    top = [TopLogprob(t, finite(p), list(b)) for t, b, p in entry.top]
    return TokenLogprob(text, finite(value), list(raw), top)
