"""The scheduler's core: mail in, commands out; no I/O, no clock, no torch.

The life of a request here: Submit -> waiting -> admitted to a slot, its prompt planned in chunks -> decoded
step by step -> its tokens come back in StepDone, are committed and sent on -> it finishes, its last
flight lands, its pages go to the radix tree or become free. One turn of the loop:

    mail ──► absorb: new requests, aborts, what came back ──► Emit, Settle
                                │
             fill the pipeline while flights < depth      ──► Launch

`depth` is the number of plans in the air: 1 waits for every result, 2 plans step N + 1 while the
executor runs N, pipelines take more. Plans name slots, not tokens, so this needs no guessing: who ends
by `max_tokens` is known in advance, who ends by a stop token costs `depth - 1` wasted rows. Only how many
of the executor's guesses were right comes as news (`speculation`): a decode lands with one token or several.

When the executor is new (ExecutorReady), everything on it is lost: a new epoch begins, whoever
ran waits in front again, and its prompt and committed tokens are prefilled. Because sampling depends
on nothing but request and position, the tokens go on as if nothing had happened.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence as Items

import numpy as np

from actors.aborts import Aborts
from actors.scheduler.adapters import AdapterSlots
from actors.scheduler.batcher import Batcher
from actors.scheduler.cache import KvCache
from actors.scheduler.commands import Command, Emit, Launch, Load, Note, Resume, Settle
from actors.scheduler.pace import Pace
from actors.scheduler.queue import WaitingQueue
from actors.scheduler.roles import Role, Unified
from actors.scheduler.running import Flight
from actors.scheduler.sequence import DEATHS_END, Sequence, Stage
from actors.scheduler.speculation import Speculation
from actors.scheduler.stride import Stride
from protocols.adapters import Adapter
from protocols.config import Policy
from protocols.errors import ErrorBody
from protocols.messages import Abort, SchedulerMail, StopHere, Submit, TokenRow
from protocols.orders import (
    Adjust,
    Continue,
    EndRequests,
    Flush,
    Memory,
    Pause,
    PauseMode,
    Release,
    Renew,
    Restore,
    SetAdapters,
    Settings,
    Standing,
)
from protocols.plan import ExecutorReady, Logprobs, PromptOutput, StepDone
from protocols.request import Finish

Ordered = Pause | Continue | Flush | Renew | Release | Restore | Adjust | EndRequests | SetAdapters
Mail = SchedulerMail | Resume | Ordered
"""What a turn takes: mail from other actors, and what the supervisor orders."""


class Core:
    """State of one scheduler. `epoch` grows by one with each ExecutorReady, from the value given."""

    def __init__(
        self,
        *,
        depth: int = 2,
        chunk_size: int = 512,
        policy: Policy = Policy.FCFS,
        radix: bool = True,
        role: Role | None = None,
        speculation: Speculation | None = None,
        burst_us: int = 0,
        epoch: int = 0,
        standing: Standing | None = None,
        adapters: AdapterSlots | None = None,
    ) -> None:
        standing = standing or Standing()
        self.depth = depth
        self.epoch = epoch
        self._weights = standing.weights.serial
        self.batcher: Batcher | None = None
        self._chunk_size = chunk_size
        self._radix = radix
        self._role = role or Unified()
        self._own = speculation or Speculation()
        self._speculation = self._own
        self._policy = policy
        self._stride = Stride(burst_us)
        self._queue = WaitingQueue(policy)
        self._pace = Pace(standing.paused, released=bool(standing.released))
        self._adapters = adapters or AdapterSlots(0)
        self._live: dict[int, Sequence] = {}
        self._aborted = Aborts()
        self._flights: deque[Flight] = deque()
        self._rows: defaultdict[int, list[TokenRow]] = defaultdict(list)
        self._settled: list[Command] = []
        self._notes: list[Command] = []
        self._executor = -1
        self._excused = 0
        self._step = 0
        self._arrivals = 0
        self._held = 0
        self._last_dispatch = 0
        self._requests = 0
        self._prompt_tokens = 0
        self._generated = 0
        self._steps = 0
        self._step_us = 0
        self._drafted = 0
        self._accepted = 0
        self._past: tuple[int, int, int] = (0, 0, 0)
        self._adjust(standing.settings)

    @property
    def flying(self) -> int:
        """Plans in the air."""
        return len(self._flights)

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self.batcher.running) if self.batcher is not None else 0

    def open(self) -> list[Sequence]:
        """Every sequence that has not ended, in order of arrival."""
        return sorted(self._live.values(), key=lambda sequence: sequence.order)

    def turn(self, mail: Items[Mail]) -> list[Command]:
        """Absorb `mail`, fill the pipeline. Plans come first, so that the executor need not wait for the
        commits; notes come before the rows that they speak of; rows come before Settle, as a settled choice
        takes no more of them; Load comes last."""
        for message in mail:
            self._absorb(message)
        commands: list[Command] = []
        while len(self._flights) < self.depth and (launch := self._launch()) is not None:
            commands.append(launch)
        commands += self._notes
        self._notes.clear()
        commands += [Emit(origin, tuple(rows)) for origin, rows in self._rows.items()]
        commands += self._settled
        self._settled.clear()
        self._rows.clear()
        commands.append(self._load())
        return commands

    def users(self, adapter: int) -> int:
        """Requests that go through an adapter."""
        return sum(sequence.adapter == adapter for sequence in self._live.values())

    def check(self) -> None:
        """AssertionError when a page is lost or in two hands, or a count is wrong. Costs O(pages)."""
        assert self._held == sum(sequence.length for sequence in self._live.values())
        if self.batcher is not None:
            self.batcher.cache.check(self.batcher.running.sequences())

    def _absorb(self, message: Mail) -> None:
        match message:
            case StepDone():
                self._land(message)
            case Submit():
                self._submit(message)
            case Abort(rid):
                self._stop(rid, Finish.ABORT)
            case StopHere(rid):
                self._stop(rid, Finish.STOP)
            case ExecutorReady():
                self._reset(message)
            case Resume(submit, committed, made):
                self._last_dispatch = max(self._last_dispatch, submit.dispatch)
                self._accept(Sequence(submit, self._arrivals, committed, made))
            case Pause(mode):
                self._pause(mode)
            case Continue():
                self._pace.mode = None
            case SetAdapters(adapters):
                self._adapt(adapters)
            case Flush():
                if self.batcher is not None:
                    self.batcher.cache.flush()
            case Renew(serial):
                self._renew(serial)
            case Release(tags):
                self._release(tags)
            case Restore(_, released):
                self._pace.released = bool(released)
            case Adjust(settings):
                self._adjust(settings)
            case EndRequests(rids):
                self._end_each(rids)

    def _release(self, tags: Items[Memory]) -> None:
        """Memory that steps need is given back; with the pages goes what is cached in them."""
        self._pace.released = True
        if Memory.KV_CACHE in tags and self.batcher is not None:
            assert not self.running, "a sequence would lose its KV"
            self.batcher.cache.flush()

    def _adjust(self, settings: Settings) -> None:
        self._queue.reorder(settings.policy or self._policy)
        own = self._own
        if own.tokens and (settings.speculate_tokens is not None or settings.speculate_rows is not None):
            tokens, rows = settings.speculate_tokens, settings.speculate_rows
            self._speculation = Speculation(
                own.tokens if tokens is None else min(tokens, own.tokens),
                own.rows if rows is None else rows,
            )
        else:
            self._speculation = own
        if self.batcher is not None:
            self.batcher.speculation = self._speculation

    def _end_each(self, rids: Items[int]) -> None:
        """End these sequences, or all, with what they have; their clients are told."""
        for sequence in [self._live[rid] for rid in rids if rid in self._live] if rids else self.open():
            self._finish(sequence, Finish.ABORT)

    def _renew(self, serial: int) -> None:
        """Other weights serve: no KV of those before is of any use."""
        self._weights = serial
        if self.batcher is not None:
            self.batcher.retract_all()
            self.batcher.cache.flush()
            assert not self.batcher.cache.cached, "KV of other weights is in use"

    def _adapt(self, adapters: Items[Adapter]) -> None:
        """These adapters are loaded; who goes through another one ends."""
        self._adapters.set(adapters)
        for sequence in list(self._live.values()):
            if not self._adapters.knows(sequence.adapter):
                self._fail(sequence, _UNLOADED)

    def _pause(self, mode: PauseMode) -> None:
        self._pace.mode = mode
        if mode is PauseMode.ABORT:
            self._end_each(())
        elif mode is PauseMode.RETRACT and self.batcher is not None:
            self.batcher.retract_all()

    # --- requests come and go

    def _submit(self, submit: Submit) -> None:
        self._last_dispatch = max(self._last_dispatch, submit.dispatch)
        if submit.rid in self._live:
            return
        if submit.rid in self._aborted:
            self._settled.append(Settle(submit.rid, Finish.ABORT))
            return
        self._accept(Sequence(submit, self._arrivals))

    def _accept(self, sequence: Sequence) -> None:
        self._arrivals += 1
        self._requests += 1
        self._prompt_tokens += sequence.prompt_len
        self._held += sequence.length
        self._live[sequence.rid] = sequence
        self._queue.add(sequence)
        if not self._adapters.knows(sequence.adapter):
            self._fail(sequence, _UNLOADED)
        elif self.batcher is not None:
            self._fit(sequence, self.batcher.cache.capacity)

    def _fit(self, sequence: Sequence, capacity: int) -> None:
        """Clip what a waiting `sequence` may produce to a pool of `capacity` tokens, or end it."""
        sequence.allowance = min(sequence.max_tokens, capacity - sequence.prompt_len + 1)
        count = len(sequence.output)
        if count and sequence.output[-1] in sequence.stops:
            self._finish(sequence, Finish.STOP, stop_token=sequence.output[-1])
        elif count and count >= sequence.allowance:
            self._finish(sequence, Finish.LENGTH)
        elif sequence.prompt_len + 1 > capacity:
            self._fail(sequence, _too_long(sequence.prompt_len, capacity))

    def _stop(self, rid: int, finish: Finish) -> None:
        if finish is Finish.ABORT:
            self._aborted.add(rid)
        sequence = self._live.get(rid)
        if sequence is not None:
            self._settled.append(Settle(rid, finish))
            self._end(sequence)

    def _finish(self, sequence: Sequence, finish: Finish, stop_token: int = -1) -> None:
        """End `sequence` with a row that carries no token."""
        start, cached = len(sequence.output), sequence.cached
        prompt_output = sequence.prompt_output() if not sequence.allowance else None
        self._row(
            sequence,
            TokenRow(
                sequence.rid, start, (), finish, cached, stop_token=stop_token, prompt_output=prompt_output
            ),
        )
        self._end(sequence)

    def _fail(self, sequence: Sequence, error: ErrorBody) -> None:
        start = len(sequence.output)
        self._row(sequence, TokenRow(sequence.rid, start, (), Finish.ERROR, error=error))
        self._end(sequence)

    def _row(self, sequence: Sequence, row: TokenRow) -> None:
        self._rows[sequence.origin].append(row)

    def _end(self, sequence: Sequence) -> None:
        """Nothing more is committed for `sequence`; what it holds comes back when its flights have landed."""
        del self._live[sequence.rid]
        self._held -= sequence.length
        if sequence.stage is Stage.WAITING:
            self._queue.remove(sequence)
            sequence.move(Stage.GONE)
        else:
            assert self.batcher is not None
            self.batcher.running.leave(sequence, Stage.ENDED)

    # --- the executor

    def _launch(self) -> Launch | None:
        """The next plan, or None when nobody can do anything."""
        batcher = self.batcher
        if batcher is None or self._pace.stands:
            return None
        draft = batcher.draft()
        if not batcher.isolate(draft, flying=bool(self._flights)):
            self._role.plan(batcher, draft)
            self._role.admit(batcher, draft)
        if not (draft.chunks or draft.decodes):
            return None
        plan, flight = batcher.finish(draft, self.epoch, self._step)
        self._step += 1
        self._flights.append(flight)
        return Launch(plan)

    def _land(self, done: StepDone) -> None:
        """What came back, if it is what is in the air: of another epoch it is the past."""
        if done.epoch != self.epoch or not self._flights or self._flights[0].step != done.step:
            return
        assert self.batcher is not None
        flight = self._flights.popleft()
        running = self.batcher.running
        slots = np.frombuffer(done.slots, "<i4")
        counts = np.bincount(slots, minlength=len(running.by_slot))
        running.land(flight, counts)
        if not flight.fills:
            self._stride.took(done.elapsed_us, flight.rounds)
        for slot, sentence in done.failed:
            sequence = running[slot]
            if sequence.stage is not Stage.ENDED:
                running.distrust(sequence)
                self._fail(sequence, ErrorBody(500, sentence, "server_error", "computation_failed"))
        for slot, prompt_output in done.prompt_outputs:
            running[slot].note(prompt_output)
        commit = self._commit if counts.max(initial=0) <= 1 else self._commit_runs
        commit(done, slots.tolist(), running.by_slot)
        running.settle(flight)
        self._drafted += done.drafted
        self._accepted += done.accepted
        self._steps += 1
        self._step_us += done.elapsed_us

    def _commit(self, done: StepDone, slots: list[int], by_slot: list[Sequence | None]) -> None:
        """A row for each sequence that still wants its token. The hot loop: once a token."""
        tokens = np.frombuffer(done.tokens, "<i4").tolist()
        logprobs = dict(done.logprobs)
        commit, rows = self._role.commit, self._rows
        none, ended, committed, weights = Finish.NONE, Stage.ENDED, 0, self._weights
        for index, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
            sequence = by_slot[slot]
            if sequence is None or sequence.stage is ended:
                continue
            if not sequence.allowance:
                self._finish(sequence, Finish.LENGTH)
                continue
            start = len(sequence.output)
            prompt_output = None if start else sequence.prompt_output()
            if sequence.serial != weights:
                self._note(sequence)
            finish = commit(sequence, token)
            committed += 1
            if finish is none and not logprobs and prompt_output is None:
                row = TokenRow(sequence.rid, start, (token,), none, sequence.cached)
            else:
                told = () if not logprobs or index not in logprobs else (logprobs[index],)
                row = _full_row(sequence, start, (token,), finish, told, prompt_output)
            rows[sequence.origin].append(row)
            if finish is not none:
                self._end(sequence)
        self._held += committed
        self._generated += committed

    def _commit_runs(self, done: StepDone, slots: list[int], by_slot: list[Sequence | None]) -> None:
        """The same where a slot may have several tokens: a row for each sequence, with all that it wants."""
        tokens, logprobs = np.frombuffer(done.tokens, "<i4").tolist(), dict(done.logprobs)
        runs: defaultdict[int, list[int]] = defaultdict(list)
        for index, slot in enumerate(slots):
            runs[slot].append(index)
        for slot, indices in runs.items():
            sequence = by_slot[slot]
            if sequence is None or sequence.stage is Stage.ENDED:
                continue
            if sequence.serial != self._weights:
                self._note(sequence)
            start, finish, prompt_output = len(sequence.output), Finish.NONE, sequence.prompt_output()
            for index in indices:
                finish = self._role.commit(sequence, tokens[index])
                if finish is not Finish.NONE:
                    break
            count = len(sequence.output) - start
            told = tuple(logprobs[index] for index in indices[:count] if index in logprobs)
            taken = tuple(sequence.output[start:])
            self._row(sequence, _full_row(sequence, start, taken, finish, told, prompt_output))
            self._held += count
            self._generated += count
            if finish is not Finish.NONE:
                self._end(sequence)

    def _note(self, sequence: Sequence) -> None:
        """The present weights have made their first token of `sequence`."""
        sequence.serial = self._weights
        sequence.made = sequence.made.also(self._weights)
        self._notes.append(Note(sequence.rid, sequence.made))

    def _reset(self, ready: ExecutorReady) -> None:
        """A new executor, with nothing on it; news of one that is known already changes nothing."""
        if ready.incarnation == self._executor:
            return
        guilty = ready.incarnation - self._executor > ready.excused - self._excused
        self._executor, self._excused = ready.incarnation, ready.excused
        self.epoch += 1
        self._step = 0
        self._flights.clear()
        before, self.batcher = self.batcher, None
        if before is not None:
            self._past = self._totals(before)
            self._recall(before, guilty)
        cache = KvCache(ready.pages, ready.page_size, self._radix)
        self._adapters.forget()
        self.batcher = Batcher(
            cache,
            ready.slots,
            self._chunk_size,
            self._queue,
            self._speculation,
            self._stride,
            self._pace,
            self._adapters,
        )
        for sequence in self._queue.all():
            self._fit(sequence, cache.capacity)

    def _recall(self, batcher: Batcher, guilty: bool) -> None:
        """Everybody on a slot waits in front again; who kills executors one after another ends. guilty:
        whether a request may have been the cause."""
        for sequence in list(batcher.running.sequences()):
            sequence.deaths += guilty and batcher.running.in_the_air(sequence)
            sequence.node, sequence.shared, sequence.pages = None, 0, []
            sequence.slot, sequence.fill = -1, b""
            if sequence.stage is Stage.ENDED:
                sequence.move(Stage.GONE)
                continue
            sequence.retracted = True
            sequence.move(Stage.WAITING)
            self._queue.add(sequence)
            if sequence.deaths >= DEATHS_END:
                self._fail(sequence, _POISON)

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

    def _load(self) -> Load:
        batcher = self.batcher
        cache = batcher.cache if batcher is not None else None
        preemptions, query, cached = self._totals(batcher)
        return Load(
            running=len(batcher.running) if batcher is not None else 0,
            waiting=len(self._queue),
            tokens_held=self._held,
            last_dispatch=self._last_dispatch,
            pages_total=cache.total if cache is not None else 0,
            pages_free=cache.free if cache is not None else 0,
            pages_cached=cache.cached if cache is not None else 0,
            pages_owned=cache.owned if cache is not None else 0,
            requests=self._requests,
            prompt_tokens=self._prompt_tokens,
            query_tokens=query,
            cached_tokens=cached,
            generated_tokens=self._generated,
            preemptions=preemptions,
            steps=self._steps,
            step_us=self._step_us,
            drafted=self._drafted,
            accepted=self._accepted,
            pages_available=cache.available if cache is not None else 0,
        )


def _full_row(
    sequence: Sequence,
    start: int,
    tokens: tuple[int, ...],
    finish: Finish,
    logprobs: tuple[Logprobs, ...],
    prompt_output: PromptOutput | None,
) -> TokenRow:
    stop_token = tokens[-1] if finish is Finish.STOP else -1
    return TokenRow(
        sequence.rid,
        start,
        tokens,
        finish,
        sequence.cached,
        logprobs,
        stop_token,
        prompt_output=prompt_output,
    )


def _too_long(prompt_len: int, capacity: int) -> ErrorBody:
    return ErrorBody(
        400,
        f"The prompt has {prompt_len} tokens, but the KV pool of this server holds {capacity} tokens,"
        " one of which is needed for the answer.",
        code="context_length_exceeded",
    )


_UNLOADED = ErrorBody(404, "The adapter of this request was unloaded.", code="model_not_found", param="model")
_POISON = ErrorBody(
    500,
    f"The engine died {DEATHS_END} times while it computed this request, at last with nothing else running.",
    "server_error",
    "engine_failure",
)
