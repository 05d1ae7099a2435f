"""What the forward over a prompt tells of it: its tokens' log probabilities, a pooled hidden state.

A prompt comes in chunks. Log probabilities are told chunk by chunk; a mean is summed up on the device, in
float64, so that it does not depend on where the chunks were cut, until the last chunk has come.
"""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpu.cuda.staging import to_device
from gpu.logprobs import LogprobRows, RawLogprobs
from gpu.models.base import Tap
from protocols.plan import Chunk, Plan, PromptOutput, SlotOpen
from protocols.sampling import Pool, SamplingParams

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass
class Round:
    """What is read in one step.

    rows: of the step, whose logits are wanted for `targets`, the tokens that came next, chunk by chunk in
    `scored` (slot, count). wanted: of the top, for each row. pooled: (slot, rows, whether they are the last).
    """

    scored: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    rows: list[int] = dataclasses.field(default_factory=list)
    targets: list[int] = dataclasses.field(default_factory=list)
    wanted: list[int] = dataclasses.field(default_factory=list)
    pooled: list[tuple[int, range, bool]] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows or self.pooled)

    def tap(self, device: torch.device) -> Tap | None:
        """Where the hidden states to be pooled are caught."""
        rows = [row for _, part, _ in self.pooled for row in part]
        return Tap(to_device(np.array(rows, np.int64), device)) if rows else None


class Told:
    """What one step read, on its way to the CPU."""

    def __init__(
        self, scored: list[tuple[int, int]], logprobs: LogprobRows | None, ranks: Tensor | None
    ) -> None:
        self._scored, self._logprobs = scored, logprobs
        self._ranks = ranks.to("cpu", non_blocking=True) if ranks is not None else None
        self._pooled: list[tuple[int, Tensor]] = []
        self._copied: torch.cuda.Event | None = None

    def add(self, slot: int, state: Tensor) -> None:
        """A pooled state [hidden]."""
        self._pooled.append((slot, state.float().to("cpu", non_blocking=True)))

    def seal(self, device: torch.device) -> None:
        """Everything is under way."""
        if device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()

    def report(self) -> tuple[tuple[int, PromptOutput], ...]:
        """(slot, PromptOutput) of each; waits for the step."""
        if self._copied is not None:
            self._copied.synchronize()
        told = [
            (slot, PromptOutput(pooled=state.numpy().astype("<f4").tobytes())) for slot, state in self._pooled
        ]
        if self._logprobs is not None and self._ranks is not None:
            ranked = zip(self._logprobs.report(), self._ranks.tolist(), strict=True)
            records = iter([msgspec.structs.replace(record, rank=rank) for (_, record), rank in ranked])
            told += [
                (slot, PromptOutput(tuple(next(records) for _ in range(count))))
                for slot, count in self._scored
            ]
        return tuple(told)


class PromptOutputs:
    """What each open slot wants told of its prompt."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked: dict[int, SamplingParams] = {}
        self._sums: dict[int, Tensor] = {}
        self._lengths: dict[int, int] = {}

    def open(self, opening: SlotOpen) -> None:
        """A sequence takes a slot."""
        self.close(opening.slot)
        sampling = opening.sampling
        if sampling.prompt_logprobs is not None or sampling.pool is not Pool.NONE:
            self._asked[opening.slot], self._lengths[opening.slot] = sampling, opening.prompt_len

    def close(self, slot: int) -> None:
        """Forget a slot; harmless when it asked for nothing."""
        for held in (self._asked, self._sums, self._lengths):
            held.pop(slot, None)

    def reset(self) -> None:
        """Forget every slot."""
        for slot in list(self._asked):
            self.close(slot)

    def plan(self, plan: Plan) -> Round | None:
        """What is to be read in a step; None for nothing, as almost always."""
        if not self._asked:
            return None
        found, row = Round(), 0
        for chunk in plan.chunks:
            sampling = self._asked.get(chunk.slot)
            if sampling is not None:
                _look(found, chunk, sampling, row)
            row += len(chunk.tokens) // 4
        return found if found else None

    def read(self, round: Round, logits: Tensor, tap: Tap | None) -> Told:
        """logits: float32 [len(round.rows), vocab]. Before anything edits them."""
        logprobs, ranks = _score(round, logits) if round.rows else (None, None)
        told, at = Told(round.scored, logprobs, ranks), 0
        for slot, rows, last in round.pooled:
            assert tap is not None and tap.states is not None
            states, at = tap.states[at : at + len(rows)].double(), at + len(rows)
            if self._asked[slot].pool is Pool.LAST:
                told.add(slot, states[-1])
                continue
            total = states.sum(0)
            self._sums[slot] = self._sums[slot] + total if slot in self._sums else total
            if last:
                told.add(slot, self._sums.pop(slot) / self._lengths[slot])
        told.seal(self._device)
        return told


def _look(round: Round, chunk: Chunk, sampling: SamplingParams, first: int) -> None:
    """Add what is wanted of a chunk whose first row is row `first` of the step."""
    ids = np.frombuffer(chunk.tokens, "<i4").tolist()
    if sampling.prompt_logprobs is not None:
        targets = ids[1:] + ([chunk.follower] if chunk.follower >= 0 else [])
        round.scored.append((chunk.slot, len(targets)))
        round.rows += range(first, first + len(targets))
        round.targets += targets
        round.wanted += [sampling.prompt_logprobs] * len(targets)
    if sampling.pool is Pool.MEAN:
        round.pooled.append((chunk.slot, range(first, first + len(ids)), chunk.sample))
    elif sampling.pool is Pool.LAST and chunk.sample:
        round.pooled.append((chunk.slot, range(first + len(ids) - 1, first + len(ids)), True))


def _score(round: Round, logits: Tensor) -> tuple[LogprobRows, Tensor]:
    """Log probabilities of the targets, and their ranks, int64 [rows]."""
    rows, wanted = np.arange(len(round.rows)), np.array(round.wanted, np.int64)
    targets = to_device(np.array(round.targets, np.int64), logits.device)
    logprobs = RawLogprobs(logits, rows, wanted, edited=False).choose(logits, targets)
    ranks = (logits > logits.gather(1, targets[:, None])).sum(1) + 1
    return logprobs, ranks
