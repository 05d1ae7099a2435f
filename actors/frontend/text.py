"""Rows of text merged until they are sent: text, logprobs, token ids, usage."""

from __future__ import annotations

import msgspec

from protocols.errors import ErrorBody
from protocols.messages import TextLogprob, TextRow
from protocols.openai.chat import CompletionDetails, CompletionUsage, PromptDetails
from protocols.request import Finish, Usage

_NONE = Finish.NONE
"""Looking a member up in its enumeration takes Python 3.11 as long as all else that is done with a row."""

FINISH_REASONS = {
    Finish.STOP: "stop",
    Finish.LENGTH: "length",
    Finish.ABORT: "abort",
    Finish.ERROR: "error",
}


def finish_reason(finish: Finish, *, called: bool) -> str:
    """OpenAI's word for an end. called: functions were called."""
    return "tool_calls" if called and finish is Finish.STOP else FINISH_REASONS[finish]


class Pending:
    """Rows of one choice, merged. characters: how many were taken before, of text; listed: of the tokens that
    logprobs listed. detailed: there is more than text. prompt_logprobs, prompt_ids: of the prompt, where it
    is listed. thinking, weights: see Usage."""

    __slots__ = (
        "characters",
        "detailed",
        "finish",
        "listed",
        "logprobs",
        "parts",
        "prompt_ids",
        "prompt_logprobs",
        "stop",
        "thinking",
        "token_ids",
        "weights",
    )

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.detailed = False
        self.logprobs: list[TextLogprob] = []
        self.token_ids: list[int] = []
        self.finish = _NONE
        self.stop: str | int | None = None
        self.characters = 0
        self.listed = 0
        self.prompt_logprobs: list[TextLogprob] = []
        self.prompt_ids: list[int] = []
        self.thinking = False
        self.weights: tuple[str, ...] = ()

    def add(self, row: TextRow) -> None:
        """Merge a row in."""
        if row.text:
            self.parts.append(row.text)
        if row.logprobs or row.token_ids:
            self._list(row)
        if row.finish is not _NONE:
            self.finish, self.stop = row.finish, row.stop
        if row.usage is not None:
            self.thinking, self.weights = row.usage.thinking, row.usage.weights

    def _list(self, row: TextRow) -> None:
        """Merge the tokens that a row lists."""
        self.detailed = True
        if row.logprobs:
            (self.logprobs if row.tokens else self.prompt_logprobs).extend(row.logprobs)
        if row.token_ids:
            (self.token_ids if row.tokens else self.prompt_ids).extend(row.token_ids)

    def __bool__(self) -> bool:
        return bool(self.parts or self.detailed)

    def take(self) -> str:
        """The text so far; logprobs and ids that belong to it are to be read before."""
        parts = self.parts
        if len(parts) == 1:
            text = parts.pop()
        else:
            text = "".join(parts)
            parts.clear()
        self.characters += len(text)
        if self.detailed:
            self.listed += sum(len(entry.token[0]) for entry in (*self.prompt_logprobs, *self.logprobs))
            for details in (self.logprobs, self.token_ids, self.prompt_logprobs, self.prompt_ids):
                details.clear()
            self.detailed = False
        return text


class Meter:
    """Token counts of a job of `choices` choices, `n` for each prompt."""

    def __init__(self, choices: int, n: int) -> None:
        self._n = n
        self._prompt = [0] * choices
        self._cached = [0] * choices
        self._output = [0] * choices
        self._reasoning = [0] * choices
        self._weights: list[tuple[str, ...]] = [()] * choices

    @property
    def begun(self) -> bool:
        """Whether the prompt has been counted, as it is with the first tokens."""
        return bool(self._prompt[0])

    def count(self, index: int, tokens: int) -> None:
        """Choice `index` has come to so many tokens."""
        self._output[index] = tokens

    def add(self, index: int, row: TextRow) -> None:
        """Take in a row of choice `index`."""
        if row.tokens > self._output[index]:
            self._output[index] = row.tokens
        if row.usage is not None:
            self._prompt[index] = row.usage.prompt_tokens
            self._cached[index] = row.usage.cached_tokens
            self._output[index] = max(self._output[index], row.usage.completion_tokens)
            self._reasoning[index] = row.usage.reasoning_tokens
            self._weights[index] = row.usage.weights

    def total(self) -> Usage:
        """A prompt counts once, whatever its number of choices; every output counts."""
        firsts = slice(None, None, self._n)
        prompt, cached = sum(self._prompt[firsts]), sum(self._cached[firsts])
        weights = tuple(dict.fromkeys(version for each in self._weights for version in each))
        return Usage(prompt, sum(self._output), cached, sum(self._reasoning), weights=weights)


class Collector:
    """The sink of an answer that is sent whole, of `choices` choices, `n` for each prompt."""

    def __init__(self, choices: int, n: int) -> None:
        self.pending = [Pending() for _ in range(choices)]
        self.meter = Meter(choices, n)

    def feed(self, index: int, row: TextRow) -> None:
        """New text."""
        self.pending[index].add(row)
        self.meter.add(index, row)

    def fail(self, error: ErrorBody) -> None:
        """Whoever waits for the generation sees the error there."""

    def pump(self) -> None:
        """Nothing is sent before the end."""


def usage_document(usage: Usage) -> CompletionUsage:
    """Usage as chat and completions show it."""
    return CompletionUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptDetails(usage.cached_tokens),
        CompletionDetails(usage.reasoning_tokens) if usage.reasoning_tokens else msgspec.UNSET,
    )
