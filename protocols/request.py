"""A request as a value: its identity, its prompt and what its client wants back."""

from __future__ import annotations

import enum

import msgspec

SLOT_BITS = 20
"""Low bits of a request id that name its ledger slot; the rest is the slot's generation."""

MAX_STOPS = 16
"""Stop strings of a request at most."""
MAX_STOP_CHARS = 1024
"""Characters of a stop string at most."""


def request_id(slot: int, generation: int) -> int:
    """The id of the `generation`-th use of ledger slot `slot`; ids never repeat in a company's life."""
    return generation << SLOT_BITS | slot


def slot_of(rid: int) -> int:
    """Ledger slot of a request id."""
    return rid & ((1 << SLOT_BITS) - 1)


class Finish(enum.IntEnum):
    """Why a sequence ended; NONE while it goes on."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4


class ChatPrompt(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Messages for the model's chat template.

    `messages`, `tools` and `template_kwargs` are JSON text, already validated by the frontend, so
    that arbitrary content crosses the ring as one string. `continue_final`: the last message is a
    prefix to continue, not a turn to answer. `shorten`: where the prompt is too long its earliest turns are
    left out.
    """

    messages: bytes
    tools: bytes = b"null"
    template_kwargs: bytes = b"{}"
    continue_final: bool = False
    shorten: bool = False


class TextPrompt(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Plain text, tokenised with the model's special tokens (BOS) where it has them."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Token ids as little-endian int32."""

    tokens: bytes


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class OutputOptions(msgspec.Struct, frozen=True, array_like=True):
    """What the tokenizer actor does with the tokens on their way back.

    stop: strings that end the text; never shown unless `include_stop`. echo: the prompt's text comes first.
    token_ids: the rows carry the ids too. `skip_special` leaves special tokens out, unless one of the tags
    `shown` is one. thoughts: the tags of the model's thoughts, whose tokens are counted; thinking: the prompt
    ends behind the opening one. whole: nobody reads the text before it is complete.
    """

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    echo: bool = False
    token_ids: bool = False
    thoughts: tuple[str, ...] = ()
    thinking: bool = False
    whole: bool = False
    shown: tuple[str, ...] = ()


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts of one choice. reasoning_tokens: of the completion, spent on thoughts. thinking: the
    prompt ends in the midst of a thought, which the output continues. weights: versions of those that made
    it, in order."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0
    thinking: bool = False
    weights: tuple[str, ...] = ()
