"""What a scheduler counts for the board, over all executors that it has had."""

from __future__ import annotations

from actors.scheduler.batcher import Batcher
from actors.scheduler.commands import Load
from actors.scheduler.requests import Requests
from protocols.plan import StepDone


class Tally:
    """Counts of steps, and of what the batchers before the present one counted."""

    def __init__(self) -> None:
        self._steps = 0
        self._step_us = 0
        self._drafted = 0
        self._accepted = 0
        self._past = (0, 0, 0)

    def landed(self, done: StepDone) -> None:
        """A step has come back."""
        self._drafted += done.drafted
        self._accepted += done.accepted
        self._steps += 1
        self._step_us += done.elapsed_us

    def retire(self, batcher: Batcher) -> None:
        """Add what a batcher counted, whose executor is gone."""
        self._past = self._totals(batcher)

    def load(self, requests: Requests, generated: int, batcher: Batcher | None) -> Load:
        """The figures as they are now."""
        cache = batcher.cache if batcher is not None else None
        preemptions, query, cached = self._totals(batcher)
        return Load(
            running=len(batcher.running) if batcher is not None else 0,
            waiting=len(requests.queue),
            tokens_held=requests.held,
            last_dispatch=requests.last_dispatch,
            pages_total=cache.total if cache is not None else 0,
            pages_free=cache.free if cache is not None else 0,
            pages_cached=cache.cached if cache is not None else 0,
            pages_owned=cache.owned if cache is not None else 0,
            requests=requests.count,
            prompt_tokens=requests.prompt_tokens,
            query_tokens=query,
            cached_tokens=cached,
            generated_tokens=generated,
            preemptions=preemptions,
            steps=self._steps,
            step_us=self._step_us,
            drafted=self._drafted,
            accepted=self._accepted,
            pages_available=cache.available if cache is not None else 0,
        )

    def _totals(self, batcher: Batcher | None) -> tuple[int, int, int]:
        """Preemptions, tokens looked up in the prefix cache, tokens found there; of all executors."""
        preemptions, query, cached = self._past
        if batcher is None:
            return self._past
        return (
            preemptions + batcher.preemptions,
            query + batcher.query_tokens,
            cached + batcher.cached_tokens,
        )
