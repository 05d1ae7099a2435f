"""From a request to its prompt's ids and complete sampling parameters, and every reason to refuse it."""

from __future__ import annotations

import dataclasses
from typing import assert_never

import msgspec
import numpy as np

from actors.sizes import reading_fits
from actors.tokenizer.codec import Codec, Ids
from actors.tokenizer.stops import check_stops
from protocols.config import ModelCard
from protocols.errors import UserError
from protocols.messages import Generate
from protocols.request import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from protocols.sampling import SamplingParams

_TOO_LONG = "context_length_exceeded"


@dataclasses.dataclass(frozen=True)
class Prompted:
    """A request with its prompt tokenised. tokens: little-endian int32. sampling: complete.
    thinking: see OutputOptions."""

    tokens: bytes
    sampling: SamplingParams
    thinking: bool = False


class Prompter:
    """Tokenises requests for one model. Safe to use from several threads. ring_bytes: see Config."""

    def __init__(self, model: ModelCard, codec: Codec, ring_bytes: int = 8 << 20) -> None:
        self._model = model
        self._ring_bytes = ring_bytes
        self._codec = codec
        eos = model.eos if codec.eos is None else (*model.eos, codec.eos)
        self._eos = tuple(token for token in dict.fromkeys(eos) if 0 <= token < model.vocab_size)

    def __call__(self, message: Generate, rendered: str, grammar: str = "") -> Prompted:
        """Tokenise and check. rendered: the text of a chat; grammar: what its rules mean. Raises UserError,
        or CodecError where the tokenizer fails."""
        check_stops(message.output.stop)
        if not message.truncate:
            self._check_length(message.prompt, rendered)
        ids = self.ids(message.prompt, rendered)
        ids = ids[-self._kept(message) :]
        if not len(ids):
            raise UserError("the prompt is empty.", param="prompt")
        if not reading_fits(message.sampling, len(ids), self._ring_bytes):
            raise UserError(
                "The prompt is too long for prompt_logprobs: ask for fewer, or for a shorter one.",
                param="prompt_logprobs",
            )
        sampling = self._complete(message.sampling, len(ids), message.default_tokens)
        if message.rules:
            sampling = _shaped(sampling, grammar)
        return Prompted(ids.tobytes(), sampling, in_thought(message, rendered))

    def room(self, message: Generate) -> int:
        """Tokens that the prompt of a request may have."""
        return self._model.context - (message.sampling.max_tokens or 1)

    def _kept(self, message: Generate) -> int:
        """How many of the prompt's last tokens are kept; 0 for all."""
        return max(self.room(message), 1) if message.truncate < 0 else message.truncate

    def fits(self, message: Generate, rendered: str) -> bool:
        """Whether a chat that reads `rendered` leaves room for its answer."""
        return not self._is_hopeless(len(rendered)) and len(self.ids(message.prompt, rendered)) <= self.room(
            message
        )

    def _check_length(self, prompt: Prompt, rendered: str) -> None:
        """Refuse a text that is longer than any that fits the context, without taking the time to encode
        it."""
        text = rendered if isinstance(prompt, ChatPrompt) else getattr(prompt, "text", "")
        if self._is_hopeless(len(text)):
            raise UserError(
                f"This model's maximum context length is {self._model.context} tokens, and the prompt's"
                f" {len(text)} characters are far more than they can say. Please shorten the prompt.",
                code=_TOO_LONG,
                param="prompt",
            )

    def _is_hopeless(self, characters: int) -> bool:
        """Whether a text of so many characters is too long however it is encoded."""
        if characters <= self._model.context:
            return False
        longest = self._codec.longest
        return longest is not None and characters > self._model.context * longest

    def ids(self, prompt: Prompt, rendered: str, *, add_special: bool | None = None) -> Ids:
        """Ids of a prompt, all within the vocabulary. add_special: None as the kind of prompt has it."""
        ids = self._tokenised(prompt, rendered, add_special)
        self._check_ids(ids)
        return ids

    def _tokenised(self, prompt: Prompt, rendered: str, add_special: bool | None) -> Ids:
        match prompt:
            case ChatPrompt():
                return self._codec.encode(rendered, add_special=bool(add_special))
            case TextPrompt(text):
                return self._codec.encode(text, add_special=add_special is not False)
            case TokenPrompt(tokens):
                if len(tokens) % 4:
                    raise UserError("the prompt's token ids are not whole int32 values.", param="prompt")
                return np.frombuffer(tokens, "<i4")
            case other:
                assert_never(other)

    def _check_ids(self, ids: Ids) -> None:
        size = self._model.vocab_size
        low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
        if low < 0 or high >= size:
            token = low if low < 0 else high
            raise UserError(
                f"the prompt holds token {token}, but the vocabulary has {size} tokens.", param="prompt"
            )

    def _complete(self, sampling: SamplingParams, count: int, default: int) -> SamplingParams:
        """Fill in what depends on model and prompt: max_tokens and the ids that stop."""
        max_tokens = _max_tokens(sampling, count, default, self._model.context)
        if sampling.min_tokens > max_tokens:
            raise UserError(
                f"min_tokens is {sampling.min_tokens}, but only {max_tokens} tokens can follow this prompt.",
                param="min_tokens",
            )
        eos = () if sampling.ignore_eos else self._eos
        stops = tuple(dict.fromkeys((*sampling.stop_token_ids, *eos)))
        return msgspec.structs.replace(sampling, max_tokens=max_tokens, stop_token_ids=stops)


def in_thought(message: Generate, rendered: str) -> bool:
    """Whether the prompt of a request ends in the midst of a thought."""
    thoughts = message.output.thoughts
    return bool(thoughts) and rendered.rstrip().endswith(thoughts[0])


def _shaped(sampling: SamplingParams, grammar: str) -> SamplingParams:
    """`sampling`, held to a grammar. UserError where no token could end the text."""
    if not sampling.stop_token_ids:
        raise UserError(
            "structured output needs a token that ends the text, and ignore_eos leaves none.",
            param="ignore_eos",
        )
    return msgspec.structs.replace(sampling, grammar=grammar)


def _max_tokens(sampling: SamplingParams, count: int, default: int, context: int) -> int:
    """The client's own limit, which the prompt's `count` tokens must leave room for; without one what they
    leave of the context, up to `default` (0: all of it) or what the client wants at least."""
    if count >= context:
        raise UserError(
            f"This model's maximum context length is {context} tokens, but the prompt has {count} tokens."
            " Please shorten the prompt.",
            code=_TOO_LONG,
            param="prompt",
        )
    wanted = sampling.max_tokens
    if wanted is None:
        return min(context - count, max(default, sampling.min_tokens)) if default else context - count
    if count + wanted > context:
        raise UserError(
            f"This model's maximum context length is {context} tokens, but {count + wanted} tokens were"
            f" requested ({count} in the prompt, {wanted} for the completion)."
            " Please shorten the prompt or ask for fewer tokens.",
            code=_TOO_LONG,
            param="max_tokens",
        )
    return wanted
