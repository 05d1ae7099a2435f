"""What goes into the next step: decodes, chunks of prefill, admissions; and which sequences are retracted
when pages run out.

A plan holds `chunk_size` tokens at most. Decodes come first, so that a long prompt never stalls a stream,
and with them what they may guess; what they leave goes to prefill, in order of admission. Prefill cannot
starve, because no more than `chunk_size` minus one page of tokens' worth of slots are used (at least one),
and guesses leave that page too. Admission is in queue order without overtaking for want of pages, so a big
request cannot starve either.
"""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import numpy.typing as npt

from actors.scheduler.adapters import OVERTAKING, AdapterSlots
from actors.scheduler.cache import KvCache
from actors.scheduler.estimate import CLIP, NewTokenRatio
from actors.scheduler.pace import Pace
from actors.scheduler.queue import WaitingQueue
from actors.scheduler.running import Flight, Mask, Running
from actors.scheduler.sequence import Sequence, Stage
from actors.scheduler.speculation import Speculation
from actors.scheduler.stride import Stride
from actors.sizes import BIAS_BYTES, HEAVY
from protocols.plan import Chunk, PageGrant, Plan, SlotOpen
from protocols.sampling import SamplingParams

WINDOW = 64
"""Waiting sequences looked at beyond those that could be admitted, so that a crowd which waits for one
common prefix does not cost a look at each of them every turn."""

PROBED = frozenset({Stage.PREFILL, Stage.DECODE, Stage.LAST})
"""Stages of a suspect whose first token has not come."""


@dataclasses.dataclass(slots=True)
class Draft:
    """A plan in the making. budget: tokens that may still go in. rows: slots with a row in it; decoding:
    those that decode. weight: bytes that the admissions in it take, see HEAVY."""

    budget: int
    rows: Mask
    decoding: Mask
    opens: list[SlotOpen] = dataclasses.field(default_factory=list)
    grants: list[PageGrant] = dataclasses.field(default_factory=list)
    chunks: list[Chunk] = dataclasses.field(default_factory=list)
    fills: list[tuple[Sequence, int]] = dataclasses.field(default_factory=list)
    decodes: bytes = b""
    drafts: bytes = b""
    rounds: int = 1
    weight: int = 0


class Batcher:
    """Fills drafts for one incarnation of an executor with `slots` slots."""

    def __init__(
        self,
        cache: KvCache,
        slots: int,
        chunk_size: int,
        queue: WaitingQueue,
        speculation: Speculation,
        stride: Stride,
        pace: Pace,
        adapters: AdapterSlots,
    ) -> None:
        usable = min(slots, max(1, chunk_size - cache.page_size))
        self.cache = cache
        self.queue = queue
        self.running = Running(cache, usable, queue.add, adapters)
        self.preemptions = 0
        self.query_tokens = 0
        self.cached_tokens = 0
        self._chunk_size = chunk_size
        self._slots = usable
        self.speculation = speculation
        self._stride = stride
        self._pace = pace
        self._ratio = NewTokenRatio()
        self._alone: Sequence | None = None

    def draft(self) -> Draft:
        """An empty draft."""
        return Draft(self._chunk_size, np.zeros(self._slots, np.bool_), np.zeros(self._slots, np.bool_))

    def finish(self, draft: Draft, epoch: int, step: int) -> tuple[Plan, Flight]:
        """The plan of a draft that has rows, and its flight, which has left."""
        self.running.launch(draft.rows)
        plan = Plan(
            epoch,
            step,
            self.running.take_closes(),
            tuple(draft.opens),
            tuple(draft.grants),
            tuple(draft.chunks),
            draft.decodes,
            draft.drafts,
            draft.rounds,
        )
        return plan, Flight(step, draft.rows, draft.decoding, tuple(draft.fills), draft.rounds)

    def add_decodes(self, draft: Draft) -> None:
        """Add a row for every decoding sequence that has, or can be given, a page for its next position."""
        running = self.running
        rows = running.decoding.copy()
        short = np.flatnonzero(rows & (running.planned == running.capacity))
        if short.size:
            self._grow(short.tolist(), rows, draft)
        slots = np.flatnonzero(rows)
        if not slots.size:
            return
        draft.rows |= rows
        draft.decoding = rows
        draft.decodes = slots.astype("<i4").tobytes()
        draft.budget -= slots.size
        if self.speculation.rows:
            self._speculate(slots, rows, draft)
        elif not running.prefilling and not (len(self.queue) and running.room):
            watched = bool((rows & running.watched).any())
            self._repeat(rows, self._stride.rounds(int(slots.size), watched=watched), draft)
        running.decode(rows, draft.rounds)
        self._ratio.decoded(draft.rounds)

    def add_chunks(self, draft: Draft) -> None:
        """Continue the prefills that were begun, in order, while the budget lasts."""
        for sequence in list(self.running.prefilling):
            if draft.budget <= 0:
                return
            self._chunk(sequence, draft)

    def admit(self, draft: Draft) -> None:
        """Admit waiting sequences while budget, slots and (by estimate) pages last."""
        if draft.budget <= 0 or not len(self.queue) or not self.running.room:
            return
        if not len(self.running):
            self._ratio.idle()
        window = min(self.running.room, draft.budget) + WINDOW
        kept_out: Sequence | None = None
        for sequence in self.queue.first(window, self._prefix):
            if draft.budget <= 0 or not self.running.room or draft.weight > HEAVY or sequence.suspect:
                return
            if not self._pace.admits(sequence):
                return
            if not self.running.adapters.fits(sequence.adapter):
                kept_out = kept_out or sequence
                continue
            if kept_out is not None and sequence.adapter and sequence.order - kept_out.order > OVERTAKING:
                continue
            fill = sequence.known()
            if self.running.upcoming.covers(sequence, fill, self.cache.prefix(sequence, fill)):
                continue
            if not self.cache.attach(sequence, fill, self._reserve(sequence)):
                return
            self._open(sequence, draft)

    def retract_all(self) -> None:
        """Retract every running sequence."""
        for sequence in self.running.runners():
            sequence.retracted = True
            self.running.leave(sequence, Stage.RETRACTED)

    def isolate(self, draft: Draft, flying: bool) -> bool:
        """Whether this draft belongs to a suspect alone: one that was in flight at several deaths of the
        executor and has given no token since. The others keep what they have and pause, until its first
        token shows that it is harmless. The draft stays empty while flights or that token must land.

        flying: whether plans are in the air.
        """
        alone = self._alone
        if alone is not None and alone.suspect and alone.stage in PROBED:
            if alone.stage is Stage.PREFILL:
                self._chunk(alone, draft)
            return True
        suspect = self.queue.suspect()
        if suspect is None or not self.running.room or not self.running.adapters.fits(suspect.adapter):
            return False
        if flying:
            return True
        if not self.cache.attach(suspect, suspect.known(), 0.0):
            return False
        self._alone = suspect
        self._open(suspect, draft)
        return True

    def _open(self, sequence: Sequence, draft: Draft) -> None:
        self.queue.remove(sequence)
        cached = self.running.open(sequence)
        if sequence.cached < 0:
            sequence.cached = min(cached, sequence.prompt_len)
        self.query_tokens += len(sequence.fill) // 4
        self.cached_tokens += cached
        draft.opens.append(
            SlotOpen(
                sequence.slot,
                sequence.rid,
                _of_the_output(sequence.sampling) if sequence.output else sequence.sampling,
                sequence.choice,
                sequence.prompt_len,
                cached,
                sequence.fill if self._remembers(sequence.sampling) else b"",
                sequence.adapter,
            )
        )
        self._grant(sequence, 0, draft)
        draft.weight += len(draft.grants[-1].pages) + len(draft.opens[-1].history)
        draft.weight += BIAS_BYTES * len(sequence.sampling.logit_bias) + len(sequence.sampling.grammar)
        self._chunk(sequence, draft)

    def _remembers(self, sampling: SamplingParams) -> bool:
        """Whether the executor must know the tokens of a sequence."""
        return sampling.remembers or (self.speculation.rows > 0 and sampling.draftable)

    def _grant(self, sequence: Sequence, first: int, draft: Draft) -> None:
        pages = np.array(sequence.pages[first:], "<i4").tobytes()
        draft.grants.append(PageGrant(sequence.slot, first, pages))

    def _chunk(self, sequence: Sequence, draft: Draft) -> None:
        start = int(self.running.planned[sequence.slot])
        end = min(start + draft.budget, len(sequence.fill) // 4)
        complete = self.running.advance(sequence, end - start)
        follower = sequence.follower(end)
        tokens = sequence.fill[4 * start : 4 * end]
        draft.chunks.append(Chunk(sequence.slot, start, tokens, complete, follower))
        draft.fills.append((sequence, end))
        draft.rows[sequence.slot] = True
        draft.budget -= end - start

    def _speculate(self, slots: npt.NDArray[np.intp], rows: Mask, draft: Draft) -> None:
        """Let the decodes guess, as far as budget and pages go."""
        running, size = self.running, self.cache.page_size
        guesses = self.speculation.guesses(running, rows, draft.budget - size)
        if not guesses.any():
            return
        draft.drafts = guesses[slots].astype("<i4").tobytes()
        draft.budget -= int(guesses.sum())
        self._extend(np.where(guesses, self.speculation.horizon(running) - running.capacity, 0), draft)

    def _repeat(self, rows: Mask, rounds: int, draft: Draft) -> None:
        """Let the decodes run so many `rounds`, as far as budget, ends and pages go."""
        if rounds == 1:
            return
        running, count = self.running, int(rows.sum())
        most = min(rounds, self._chunk_size // count, int((running.limit - running.planned)[rows].min()))
        self._extend(np.where(rows, running.planned + most - running.capacity, 0), draft)
        draft.rounds = min(most, int((running.capacity - running.planned)[rows].min()))

    def _extend(self, lacking: npt.NDArray[np.int64], draft: Draft) -> None:
        """Pages for so many positions more of each slot, while there are some to spare."""
        running, size = self.running, self.cache.page_size
        for slot in np.flatnonzero(lacking > 0).tolist():
            pages, sequence = -(-int(lacking[slot]) // size), running[slot]
            if self.cache.available >= pages + len(running) and running.grow(sequence, pages):
                self._grant(sequence, len(sequence.pages) - pages, draft)

    def _prefix(self, sequence: Sequence) -> int:
        return self.cache.prefix(sequence, sequence.known())

    def _reserve(self, sequence: Sequence) -> float:
        """Pages to leave for the growth of everybody, `sequence` included; none when nobody else runs."""
        if not len(self.running):
            return 0.0
        own = min(sequence.allowance - len(sequence.output), CLIP)
        return self._ratio.value * (self.running.expected() + own) / self.cache.page_size

    def _grow(self, short: list[int], rows: Mask, draft: Draft) -> None:
        """Give a page to each of the sequences on the slots `short`; one that gets none has no row in this
        draft."""
        wanting = [self.running[slot] for slot in short]
        if len(wanting) > self.cache.available:
            self._make_room(wanting)
            wanting = [sequence for sequence in wanting if sequence.stage is Stage.DECODE]
            wanting = wanting[: self.cache.available]
        rows[short] = False
        draft.grants += self.running.grow_each(wanting)
        rows[[sequence.slot for sequence in wanting]] = True
        rows &= self.running.decoding

    def _make_room(self, wanting: list[Sequence]) -> None:
        """Retract until everybody else has a page, now or when the flights have landed.

        Victims: fewest output tokens, then longest input (the least work lost, the most pages won). One
        always goes on.
        """
        runners = sorted(self.running.runners(), key=lambda s: (-len(s.output), s.prompt_len, s.order))
        while len(runners) > 1:
            want = sum(sequence.stage is Stage.DECODE for sequence in wanting)
            if want <= self.cache.available + self.running.coming():
                return
            self.running.leave(self._retracted(runners.pop()), Stage.RETRACTED)
            decoded, allowed = sum(len(s.output) for s in runners), sum(s.allowance for s in runners)
            self._ratio.retracted(decoded, allowed, len(runners))

    def _retracted(self, victim: Sequence) -> Sequence:
        victim.retracted = True
        self.preemptions += 1
        return victim


def _of_the_output(sampling: SamplingParams) -> SamplingParams:
    """`sampling` without the outputs about the prompt, which have been sent already."""
    if sampling.prompt_logprobs is None:
        return sampling
    return msgspec.structs.replace(sampling, prompt_logprobs=None)
