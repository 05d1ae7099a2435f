"""Oracle A: a "model" whose next token is a hash of the request and the position.

The hash executor answers with these tokens and a checker recomputes them, so that a lost, duplicated or
wrong token anywhere between executor and client shows bit by bit, without a model. The prompt enters
as the CRC-32 of its int32 bytes: a CRC can be carried on chunk by chunk (`zlib.crc32(chunk, crc)`), and an
executor that keeps it for each position can read it back from cached pages.
"""

from __future__ import annotations

import zlib

import msgspec

from protocols.request import Finish
from protocols.sampling import SamplingParams

HASH_HIDDEN = 8
_MASK = 2**64 - 1


def hash_token(key: int, seed: int, choice: int, position: int, vocab: int) -> int:
    """Token at absolute `position` (prompt_len + output index) of a choice; 0 <= token < vocab.

    key: `sequence_key` of the request. The mixer is splitmix64's finaliser (Steele et al., 2014).
    """
    value = (key * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03 + choice * 0x8CB92BA72F3D8DD7) & _MASK
    value = (value + position * 0xA0761D6478BD642F) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return (value ^ (value >> 31)) % vocab


def sequence_key(prompt_crc: int, sampling: SamplingParams, adapter: int = 0) -> int:
    """Identity of a request for the hash: its prompt, its adapter, and the parameters that shape the
    distribution.

    prompt_crc: `zlib.crc32` of the prompt's little-endian int32 bytes.
    """
    shape = (
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.min_p,
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.logit_bias,
    )
    named = (*shape, adapter) if adapter else shape
    return zlib.crc32(msgspec.msgpack.encode(named), prompt_crc)


def hash_state(key: int) -> tuple[float, ...]:
    """The pooled hidden state of a prompt: HASH_HIDDEN numbers between -1 and 1."""
    return tuple(hash_token(key, 0, 0, i, 2001) / 1000 - 1 for i in range(HASH_HIDDEN))


def next_token(
    key: int, sampling: SamplingParams, choice: int, prompt_len: int, index: int, vocab: int
) -> int:
    """Output token `index` of a choice: `hash_token`, with stop tokens suppressed below `min_tokens`.

    sampling: complete, its seed filled in.
    """
    assert sampling.seed is not None
    token = hash_token(key, sampling.seed, choice, prompt_len + index, vocab)
    if index < sampling.min_tokens:
        for _ in sampling.stop_token_ids:
            if token not in sampling.stop_token_ids:
                break
            token = (token + 1) % vocab
    return token


def guesses(
    key: int, sampling: SamplingParams, choice: int, prompt_len: int, index: int, count: int, vocab: int
) -> tuple[int, ...]:
    """`count` guesses for the output tokens from `index` on, as good as a hash of the position has it: right
    up to some point, perhaps to the end, and wrong from there."""
    assert sampling.seed is not None
    right = hash_token(~key, sampling.seed, choice, prompt_len + index, count + 1)
    ahead = (next_token(key, sampling, choice, prompt_len, index + i, vocab) for i in range(count))
    return tuple(token if i < right else (token + 1) % vocab for i, token in enumerate(ahead))


def continuation(
    prompt: bytes, sampling: SamplingParams, choice: int, vocab: int, adapter: int = 0
) -> tuple[tuple[int, ...], Finish]:
    """The whole output of a choice, its stop token included, and why it ends.

    prompt: little-endian int32 ids. sampling: complete, seed and max_tokens filled in.
    """
    assert sampling.max_tokens is not None
    key = sequence_key(zlib.crc32(prompt), sampling, adapter)
    tokens: list[int] = []
    while len(tokens) < sampling.max_tokens:
        tokens.append(next_token(key, sampling, choice, len(prompt) // 4, len(tokens), vocab))
        if tokens[-1] in sampling.stop_token_ids:
            return tuple(tokens), Finish.STOP
    return tuple(tokens), Finish.LENGTH
