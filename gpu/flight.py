"""A launched plan, and the result that is read back from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import msgspec
import numpy as np

from gpu.block_tables import Step
from gpu.prompt_outputs import Told
from gpu.sampler import Likeliest, SampleResult
from protocols.errors import ErrorBody
from protocols.plan import StepDone


@dataclasses.dataclass(frozen=True, slots=True)
class Flight:
    """A launched plan. layout: None when it has no rows; result: None when it samples nothing. launched:
    perf_counter seconds. told: what was read of prompts. further: the plan's rounds after the first. refused:
    why slots of it are not computed."""

    epoch: int
    step: int
    layout: Step | None
    result: SampleResult | Likeliest | None
    launched: float
    told: Told | None = None
    further: tuple[Flight, ...] = ()
    refused: Mapping[int, ErrorBody] = dataclasses.field(default_factory=dict)

    def land(self) -> StepDone:
        """Wait for the result of all its rounds. `elapsed_us` is left at 0."""
        rounds = [_done(each) for each in (self, *self.further)]
        return _joined(rounds) if self.further else rounds[0]


def _done(flight: Flight) -> StepDone:
    """The result of one round; waits for it."""
    layout, result = flight.layout, flight.result
    prompt_outputs = () if flight.told is None else flight.told.report()
    if layout is None or result is None:
        return StepDone(flight.epoch, flight.step, b"", b"", 0, prompt_outputs=prompt_outputs)
    tokens, logprobs = result.host_tokens(), result.logprobs
    failed = [(slot, flight.refused.get(slot, error)) for slot, error in result.failed]
    confirmed = layout.confirmed(tokens)
    kept = layout.kept(confirmed)
    if len(kept) < len(tokens):
        place = {row: index for index, row in enumerate(kept.tolist())}
        logprobs = [(place[row], report) for row, report in logprobs if row in place]
        failing = np.flatnonzero(tokens < 0).tolist()
        failed = [report for row, report in zip(failing, failed, strict=True) if row in place]
    return StepDone(
        epoch=flight.epoch,
        step=flight.step,
        slots=layout.sampled[kept].astype("<i4").tobytes(),
        tokens=tokens[kept].astype("<i4").tobytes(),
        elapsed_us=0,
        logprobs=tuple(logprobs),
        failed=tuple(failed),
        prompt_outputs=prompt_outputs,
        drafted=sum(len(run.tokens) - 1 for run in layout.runs),
        accepted=sum(confirmed) - len(confirmed),
    )


def _joined(rounds: list[StepDone]) -> StepDone:
    """One result of several rounds of decodes."""
    width = len(rounds[0].slots) // 4
    reports = ((at * width + i, told) for at, done in enumerate(rounds) for i, told in done.logprobs)
    return msgspec.structs.replace(
        rounds[0],
        slots=b"".join(done.slots for done in rounds),
        tokens=b"".join(done.tokens for done in rounds),
        logprobs=tuple(reports),
        failed=tuple({slot: error for done in rounds[::-1] for slot, error in done.failed}.items()),
    )
