"""How the next token of a request is chosen: a value that travels from client to sampler.

The order in which the sampler applies the fields is: logit bias, suppression of stop tokens below
`min_tokens`, the grammar's mask, repetition / presence / frequency penalties, temperature, top-k, top-p,
min-p, draw. The draw is counter-based: one uniform from Philox4x32-10(seed, choice, position), then the
inverse of the cumulative distribution, so a token depends on nothing but its own request.
"""

from __future__ import annotations

import enum
import math

import msgspec

from protocols.errors import UserError

MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
_INT63 = 2**63 - 1


class Pool(enum.IntEnum):
    """Which final hidden states of the prompt are returned instead of tokens: none, that of the last token,
    or the mean of all."""

    NONE = 0
    LAST = 1
    MEAN = 2


class SamplingParams(msgspec.Struct, frozen=True, array_like=True, omit_defaults=False):
    """Sampling of one choice.

    temperature: 0 is greedy. top_k: 0 is off. top_p, min_p: probabilities. max_tokens: new tokens
    at most, None until the tokenizer fills in what the context leaves. seed: 63 bits, None until the
    frontend draws one. stop_token_ids: finish with reason "stop" (the model's own EOS ids are added
    by the tokenizer actor unless `ignore_eos`). logprobs: None is off, n >= 0 reports the
    chosen token and the n most likely. logit_bias: (token id, bias) pairs. max_tokens 0: the prompt is run
    and nothing comes after it. prompt_logprobs: as logprobs, of the prompt's tokens, each by those before it.
    pool: only with max_tokens 0.
    grammar: what the text must be, in llguidance's form; "" for anything, made by the tokenizer actor of what
    the client asked for.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    pool: Pool = Pool.NONE
    grammar: str = ""

    @property
    def reads_prompt(self) -> bool:
        """Whether every token of the prompt has to be computed, so that none may come from the prefix
        cache."""
        return self.prompt_logprobs is not None or self.pool is Pool.MEAN

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether the token history changes the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def remembers(self) -> bool:
        """Whether the sampler must know the tokens so far."""
        return self.penalised or bool(self.grammar)

    @property
    def draftable(self) -> bool:
        """Whether guessed tokens can be verified side by side: no logits depend on the tokens between."""
        return not self.remembers


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise UserError(f"{name} must be between {low:.15g} and {high:.15g}, not {value:.15g}.", param=name)


def validate(params: SamplingParams, vocab_size: int, *, least: int = 1) -> None:
    """Refuse absurd values with a sentence (UserError, status 400) before anything is allocated. least: of
    max_tokens."""
    _within("temperature", params.temperature, 0.0, 100.0)
    _within("top_p", params.top_p, 1e-9, 1.0)
    _within("min_p", params.min_p, 0.0, 1.0)
    _within("presence_penalty", params.presence_penalty, -2.0, 2.0)
    _within("frequency_penalty", params.frequency_penalty, -2.0, 2.0)
    _within("repetition_penalty", params.repetition_penalty, 1e-3, 1e3)
    _within("top_k", params.top_k, -1, 2**31)
    if params.seed is not None and not 0 <= params.seed <= _INT63:
        raise UserError("seed must be an integer between 0 and 2**63 - 1.", param="seed")
    if params.max_tokens is not None:
        _within("max_tokens", params.max_tokens, least, 2**31)
        if params.min_tokens > params.max_tokens:
            raise UserError("min_tokens must not exceed max_tokens.", param="min_tokens")
    _within("min_tokens", params.min_tokens, 0, 2**31)
    if params.logprobs is not None:
        _within("logprobs", params.logprobs, 0, MAX_TOP_LOGPROBS)
    if params.prompt_logprobs is not None:
        _within("prompt_logprobs", params.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
    _check_ids("stop_token_ids", params.stop_token_ids, MAX_STOP_TOKEN_IDS, vocab_size)
    _check_ids("logit_bias", tuple(i for i, _ in params.logit_bias), MAX_LOGIT_BIAS, vocab_size)
    for _, bias in params.logit_bias:
        _within("logit_bias", bias, -100.0, 100.0)


def _check_ids(name: str, ids: tuple[int, ...], limit: int, vocab_size: int) -> None:
    if len(ids) > limit:
        raise UserError(f"{name} may hold at most {limit} entries, not {len(ids)}.", param=name)
    for token in ids:
        if not 0 <= token < vocab_size:
            raise UserError(
                f"{name} names token {token}, but the vocabulary has {vocab_size} tokens.",
                param=name,
            )
