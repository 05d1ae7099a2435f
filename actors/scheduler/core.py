"""The scheduler's core: mail in, commands out; no I/O, no clock, no torch.

The life of a request here: it arrives as Submit and waits; it is admitted to a slot and its prompt is planned
in chunks; it is decoded step by step, and its tokens come back in StepDone, are committed and sent on; it
finishes, its last flight lands, and its pages go to the radix tree or become free. One turn of the loop:

    mail ──► absorb: new requests, aborts, what came back ──► Emit, Settle
                                │
             fill the pipeline while flights < depth      ──► Launch

`depth` is the number of plans in flight: 1 waits for every result, 2 plans step N + 1 while the executor runs
N, a pipeline would take more. This is possible because plans name slots, not tokens. Which sequences end by
`max_tokens` is known in advance; one that ends by a stop token costs `depth - 1` wasted rows. With
speculation a decode lands with one token or several, which is known only then.

A new executor (ExecutorReady) has lost everything: a new epoch begins, the running sequences go back to the
front of the queue, and their prompts and committed tokens are prefilled again. Because sampling depends on
nothing but request and position, the tokens continue as if nothing had happened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items

import numpy as np

from actors.scheduler.adapters import AdapterSlots
from actors.scheduler.batcher import Batcher
from actors.scheduler.cache import KvCache
from actors.scheduler.commands import Command, Launch, Load, Resume
from actors.scheduler.commit import Committer
from actors.scheduler.pace import Pace
from actors.scheduler.requests import Requests
from actors.scheduler.roles import Role, Unified
from actors.scheduler.running import Flight
from actors.scheduler.sequence import DEATHS_END, Sequence, Stage
from actors.scheduler.speculation import Speculation
from actors.scheduler.stride import Stride
from actors.scheduler.tally import Tally
from protocols.config import Policy
from protocols.errors import ErrorBody
from protocols.messages import Abort, SchedulerMail, StopHere, Submit
from protocols.orders import Adjust, Continue, EndRequests, Flush, Pause, Release, Renew, Restore, SetAdapters
from protocols.plan import ExecutorReady, StepDone
from protocols.request import Finish
from protocols.standing import Memory, PauseMode, Settings, Standing

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
        self.batcher: Batcher | None = None
        self._chunk_size = chunk_size
        self._radix = radix
        self._role = role or Unified()
        self._own = speculation or Speculation()
        self._speculation = self._own
        self._policy = policy
        self._stride = Stride(burst_us)
        self._pace = Pace(standing.paused, released=bool(standing.released))
        self._adapters = adapters or AdapterSlots(0)
        self._requests = Requests(policy, self._adapters)
        self._committer = Committer(self._requests, self._role, standing.weights.serial)
        self._tally = Tally()
        self._flights: deque[Flight] = deque()
        self._executor = -1
        self._excused = 0
        self._step = 0
        self._adjust(standing.settings)

    @property
    def flying(self) -> int:
        """Plans in flight."""
        return len(self._flights)

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self.batcher.running) if self.batcher is not None else 0

    def open(self) -> list[Sequence]:
        """Every sequence that has not ended, in order of arrival."""
        return self._requests.open()

    def users(self, adapter: int) -> int:
        """Requests that go through an adapter."""
        return self._requests.users(adapter)

    def turn(self, mail: Items[Mail]) -> list[Command]:
        """Absorb `mail`, fill the pipeline. Plans come first, so that the executor need not wait for the
        commits; notes come before the rows that they speak of; rows come before Settle; Load comes last."""
        for message in mail:
            self._absorb(message)
        commands: list[Command] = []
        while len(self._flights) < self.depth and (launch := self._launch()) is not None:
            commands.append(launch)
        commands += self._committer.take_notes()
        commands += self._requests.take_commands()
        commands.append(self._load())
        return commands

    def check(self) -> None:
        """AssertionError when a page is lost or in two hands, or a count is wrong. Costs O(pages)."""
        self._requests.check()
        if self.batcher is not None:
            self.batcher.cache.check(self.batcher.running.sequences())

    def _absorb(self, message: Mail) -> None:
        match message:
            case StepDone():
                self._land(message)
            case Submit():
                self._requests.submit(message)
            case Abort(rid):
                self._requests.stop(rid, Finish.ABORT)
            case StopHere(rid):
                self._requests.stop(rid, Finish.STOP)
            case ExecutorReady():
                self._reset(message)
            case Resume(submit, committed, made):
                self._requests.resume(submit, committed, made)
            case Pause(mode):
                self._pause(mode)
            case Continue():
                self._pace.mode = None
            case SetAdapters(adapters):
                self._requests.adapt(adapters)
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
                self._requests.end_each(rids)

    # --- orders

    def _release(self, tags: Items[Memory]) -> None:
        """Launch no steps: memory that they need is given back. With the pages goes what is cached in
        them."""
        self._pace.released = True
        if Memory.KV_CACHE in tags and self.batcher is not None:
            assert not self.running, "a sequence would lose its KV"
            self.batcher.cache.flush()

    def _adjust(self, settings: Settings) -> None:
        self._requests.queue.reorder(settings.policy or self._policy)
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

    def _renew(self, serial: int) -> None:
        """Other weights serve: drop all KV, which belongs to the old ones."""
        self._committer.weights = serial
        if self.batcher is not None:
            self.batcher.retract_all()
            self.batcher.cache.flush()
            assert not self.batcher.cache.cached, "KV of other weights is in use"

    def _pause(self, mode: PauseMode) -> None:
        self._pace.mode = mode
        if mode is PauseMode.ABORT:
            self._requests.end_each(())
        elif mode is PauseMode.RETRACT and self.batcher is not None:
            self.batcher.retract_all()

    # --- the executor

    def _launch(self) -> Launch | None:
        """The next plan, or None when there is nothing to compute."""
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
        """Take in the result of the oldest flight; one of an earlier epoch is ignored."""
        if done.epoch != self.epoch or not self._flights or self._flights[0].step != done.step:
            return
        assert self.batcher is not None
        flight = self._flights.popleft()
        running = self.batcher.running
        slots = np.frombuffer(done.slots, "<i4")
        counts = np.bincount(slots, minlength=len(running.by_slot))
        running.land(flight, counts)
        if not flight.fills:
            self._stride.took(done.elapsed_us, flight.rounds, int(np.count_nonzero(flight.decodes)))
        for slot, error in done.failed:
            sequence = running[slot]
            if sequence.stage is not Stage.ENDED:
                running.distrust(sequence)
                self._requests.fail(sequence, error)
        for slot, prompt_output in done.prompt_outputs:
            running[slot].note(prompt_output)
        commit = self._committer.commit if counts.max(initial=0) <= 1 else self._committer.commit_runs
        commit(done, slots.tolist(), running.by_slot)
        running.settle(flight)
        self._tally.landed(done)

    def _reset(self, ready: ExecutorReady) -> None:
        """Begin a new epoch on a new executor, which holds nothing. Hearing again of the same one changes
        nothing."""
        if ready.incarnation == self._executor:
            return
        guilty = ready.incarnation - self._executor > ready.excused - self._excused
        self._executor, self._excused = ready.incarnation, ready.excused
        self.epoch += 1
        self._step = 0
        self._flights.clear()
        before, self.batcher = self.batcher, None
        if before is not None:
            self._tally.retire(before)
            self._recall(before, guilty)
        self._adapters.forget()
        self.batcher = Batcher(
            KvCache(ready.pages, ready.page_size, self._radix),
            ready.slots,
            self._chunk_size,
            self._requests.queue,
            self._speculation,
            self._stride,
            self._pace,
            self._adapters,
        )
        self._requests.serve_on(self.batcher.running)

    def _recall(self, batcher: Batcher, guilty: bool) -> None:
        """Put the sequences on slots back to the front of the queue; fail those that were in flight at too
        many deaths. guilty: whether a request may have caused this one."""
        for sequence in list(batcher.running.sequences()):
            sequence.deaths += guilty and batcher.running.in_the_air(sequence)
            sequence.node, sequence.shared, sequence.pages = None, 0, []
            sequence.slot, sequence.fill = -1, b""
            if sequence.stage is Stage.ENDED:
                sequence.move(Stage.GONE)
                continue
            sequence.retracted = True
            sequence.move(Stage.WAITING)
            self._requests.queue.add(sequence)
            if sequence.deaths >= DEATHS_END:
                self._requests.fail(sequence, _POISON)

    def _load(self) -> Load:
        return self._tally.load(self._requests, self._committer.generated, self.batcher)


_POISON = ErrorBody(
    500,
    f"The engine died {DEATHS_END} times while it computed this request, at last with nothing else running.",
    "server_error",
    "engine_failure",
)
