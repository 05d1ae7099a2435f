"""Speculation without a draft model: the executor guesses tokens and verifies the guesses beside its own row.

A decode with m guesses runs 1 + m rows: the last token, then the guesses. The sampler samples at each of them
as it would if the rows came one by one, because a token depends on the logits, the request and the position
alone. So a row counts when all guesses up to it are what was sampled: the tokens are those of a run without
speculation, and the KV of the other rows is overwritten by the next step.

Guesses come from the text itself (`gpu.ngrams`): code that is edited, documents that are quoted and tables
that go on repeat what is there already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gpu.ngrams import Ngrams
from protocols.config import Config, Speculate
from protocols.plan import Plan, SlotOpen


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A decode with guesses. tokens: the last token of `slot`, then the guesses; a row each."""

    slot: int
    tokens: tuple[int, ...]

    def confirmed(self, sampled: Sequence[int]) -> int:
        """How many of the rows count, given what was sampled at each (-1: failed): 1 at least."""
        count = 1
        while count < len(self.tokens) and sampled[count - 1] == self.tokens[count] and sampled[count] >= 0:
            count += 1
        return count


_LEAST_REACH = 2
_LONGEST_PAUSE = 15


class _Text:
    """What is known of a slot. end: positions that it can have. ended: whether it has a stop token.

    A guess costs a row, so how much is guessed follows what guesses were worth: `_reach` is twice what was
    right the last time, and after each guess that was all wrong come twice as many steps without one.
    """

    def __init__(self, opening: SlotOpen, config: Config) -> None:
        sampling, known = opening.sampling, len(opening.history) // 4
        context = config.model.context
        self.end = context if sampling.max_tokens is None else opening.prompt_len + sampling.max_tokens - 1
        self.ngrams = Ngrams(
            opening.history,
            max(known, min(self.end + 1, context)),
            config.speculate_min,
            config.speculate_max,
        )
        self._reach = self._most = config.speculate_tokens
        self._pause = self._paused = 0
        self._stops = frozenset(sampling.stop_token_ids)
        self.ended = False

    def add(self, tokens: Sequence[int], guessed: int) -> None:
        """A step sampled `tokens`, having guessed so many."""
        for token in tokens:
            self.ngrams.append(token)
            self.ended |= token in self._stops
        right = len(tokens) - 1
        if guessed:
            self._reach = min(self._most, max(_LEAST_REACH, 2 * right))
            self._pause = 0 if right else min(2 * self._pause + 1, _LONGEST_PAUSE)
            self._paused = 0

    def guess(self, most: int) -> list[int]:
        """Tokens that may come next; `most` at most."""
        if self._paused < self._pause:
            self._paused += 1
            return []
        return self.ngrams.guess(min(most, self._reach))


class Speculator:
    """The texts of the slots that can be guessed for."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._texts: dict[int, _Text] = {}

    @classmethod
    def of(cls, config: Config) -> Speculator | None:
        """What the options ask for."""
        return None if config.speculate is Speculate.OFF else cls(config)

    def open(self, opening: SlotOpen) -> None:
        """A sequence takes a slot."""
        self.close(opening.slot)
        if opening.sampling.draftable:
            self._texts[opening.slot] = _Text(opening, self._config)

    def close(self, slot: int) -> None:
        """Forget a slot; harmless when it is closed already."""
        self._texts.pop(slot, None)

    def reset(self) -> None:
        """Forget every slot."""
        self._texts.clear()

    def add(self, slot: int, tokens: Sequence[int], guessed: int = 0) -> None:
        """A step sampled `tokens` for a slot, of which it had guessed so many; -1: failed."""
        text = self._texts.get(slot)
        if text is not None:
            text.add([token for token in tokens if token >= 0], guessed)

    def rows(
        self, plan: Plan, lengths: npt.NDArray[np.int64], granted: npt.NDArray[np.int64]
    ) -> tuple[list[Run], npt.NDArray[np.int64]]:
        """The plan's decodes: those with guesses, and the slots of those without. Who has ended, or reached
        the end of its pages, has no row. lengths, granted: positions of each slot with KV, with a page."""
        runs: list[Run] = []
        plain: list[int] = []
        decodes = np.frombuffer(plan.decodes, "<i4").tolist()
        allowed = np.frombuffer(plan.drafts, "<i4").tolist() or [0] * len(decodes)
        for slot, most in zip(decodes, allowed, strict=True):
            text = self._texts.get(slot)
            if text is None:
                plain.append(slot)
                continue
            room = min(text.end, int(granted[slot])) - int(lengths[slot])
            if room <= 0 or text.ended:
                continue
            guesses = text.guess(min(most, room - 1))
            if guesses:
                runs.append(Run(slot, (text.ngrams.tokens[-1], *guesses)))
            else:
                plain.append(slot)
        return runs, np.array(plain, np.int64)
