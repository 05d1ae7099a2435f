"""Every open request, from its submission to its last row, and the rows that are to be sent.

A sequence waits in the queue or runs on a slot. Whatever ends it (a token, an abort, an order, an error)
passes `end`, once; what it holds then comes back when its flights have landed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Items

from actors.aborts import Aborts
from actors.scheduler.adapters import AdapterSlots
from actors.scheduler.commands import Command, Emit, Settle
from actors.scheduler.queue import WaitingQueue
from actors.scheduler.running import Running
from actors.scheduler.sequence import Sequence, Stage
from protocols.adapters import UNLOADED, Adapter
from protocols.config import Policy
from protocols.errors import ErrorBody
from protocols.messages import Submit, TokenRow
from protocols.request import Finish
from protocols.weights import Made


class Requests:
    """held: tokens of all of them. rows: to be told, for each tokenizer. running: those on a slot, None
    while there is no executor. count, prompt_tokens: of all that ever came. last_dispatch: the
    balancer's number of the latest."""

    def __init__(self, policy: Policy, adapters: AdapterSlots) -> None:
        self.queue = WaitingQueue(policy)
        self.running: Running | None = None
        self.rows: defaultdict[int, list[TokenRow]] = defaultdict(list)
        self.held = 0
        self.count = 0
        self.prompt_tokens = 0
        self.last_dispatch = 0
        self._adapters = adapters
        self._live: dict[int, Sequence] = {}
        self._aborted = Aborts()
        self._settled: list[Command] = []

    def open(self) -> list[Sequence]:
        """Every sequence that has not ended, in order of arrival."""
        return sorted(self._live.values(), key=lambda sequence: sequence.order)

    def users(self, adapter: int) -> int:
        """Requests that go through an adapter."""
        return sum(sequence.adapter == adapter for sequence in self._live.values())

    def take_commands(self) -> list[Command]:
        """The commands since the last call; rows come before Settle, as a settled choice takes no more of
        them."""
        commands: list[Command] = [Emit(origin, tuple(rows)) for origin, rows in self.rows.items()]
        commands += self._settled
        self._settled.clear()
        self.rows.clear()
        return commands

    def submit(self, submit: Submit) -> None:
        """Queue a new request. One that is known changes nothing; one that was aborted before it came ends at
        once."""
        self.last_dispatch = max(self.last_dispatch, submit.dispatch)
        if submit.rid in self._live:
            return
        if submit.rid in self._aborted:
            self._settled.append(Settle(submit.rid, Finish.ABORT))
            return
        self._accept(Sequence(submit, self.count))

    def resume(self, submit: Submit, committed: tuple[int, ...], made: Made) -> None:
        """Queue a request that was found open in the ledger."""
        self.last_dispatch = max(self.last_dispatch, submit.dispatch)
        self._accept(Sequence(submit, self.count, committed, made))

    def serve_on(self, running: Running) -> None:
        """A new executor is there, with these slots."""
        self.running = running
        for sequence in self.queue.all():
            self._fit(sequence, running.cache.capacity)

    def adapt(self, adapters: Items[Adapter]) -> None:
        """Replace the list of loaded adapters; requests that go through any other end."""
        self._adapters.set(adapters)
        for sequence in list(self._live.values()):
            if not self._adapters.knows(sequence.adapter):
                self.fail(sequence, UNLOADED)

    def stop(self, rid: int, finish: Finish) -> None:
        """End a request that somebody else has ended: nobody needs to be told."""
        if finish is Finish.ABORT:
            self._aborted.add(rid)
        sequence = self._live.get(rid)
        if sequence is not None:
            self._settled.append(Settle(rid, finish))
            self.end(sequence)

    def end_each(self, rids: Items[int]) -> None:
        """End these sequences, or all, with what they have; their clients are told."""
        for sequence in [self._live[rid] for rid in rids if rid in self._live] if rids else self.open():
            self.finish(sequence, Finish.ABORT)

    def finish(self, sequence: Sequence, finish: Finish, stop_token: int = -1) -> None:
        """End `sequence` with a row that carries no token."""
        start, cached = len(sequence.output), sequence.cached
        told = sequence.prompt_output() if not sequence.allowance else None
        row = TokenRow(sequence.rid, start, (), finish, cached, stop_token=stop_token, prompt_output=told)
        self.rows[sequence.origin].append(row)
        self.end(sequence)

    def fail(self, sequence: Sequence, error: ErrorBody) -> None:
        """End `sequence` with an error."""
        row = TokenRow(sequence.rid, len(sequence.output), (), Finish.ERROR, error=error)
        self.rows[sequence.origin].append(row)
        self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        """Nothing more is committed for `sequence`; what it holds comes back when its flights have landed."""
        del self._live[sequence.rid]
        self.held -= sequence.length
        if sequence.stage is Stage.WAITING:
            self.queue.remove(sequence)
            sequence.move(Stage.GONE)
        else:
            assert self.running is not None
            self.running.leave(sequence, Stage.ENDED)

    def check(self) -> None:
        """AssertionError when the count of tokens is wrong."""
        assert self.held == sum(sequence.length for sequence in self._live.values())

    def _accept(self, sequence: Sequence) -> None:
        self.count += 1
        self.prompt_tokens += sequence.prompt_len
        self.held += sequence.length
        self._live[sequence.rid] = sequence
        self.queue.add(sequence)
        if not self._adapters.knows(sequence.adapter):
            self.fail(sequence, UNLOADED)
        elif self.running is not None:
            self._fit(sequence, self.running.cache.capacity)

    def _fit(self, sequence: Sequence, capacity: int) -> None:
        """Clip what a waiting `sequence` may produce to a pool of `capacity` tokens, or end it."""
        sequence.allowance = min(sequence.max_tokens, capacity - sequence.prompt_len + 1)
        count = len(sequence.output)
        if count and sequence.output[-1] in sequence.stops:
            self.finish(sequence, Finish.STOP, stop_token=sequence.output[-1])
        elif count and count >= sequence.allowance:
            self.finish(sequence, Finish.LENGTH)
        elif sequence.prompt_len + 1 > capacity:
            self.fail(sequence, _too_long(sequence.prompt_len, capacity))


def _too_long(prompt_len: int, capacity: int) -> ErrorBody:
    return ErrorBody(
        400,
        f"The prompt has {prompt_len} tokens, but the KV pool of this server holds {capacity} tokens,"
        " one of which is needed for the answer.",
        code="context_length_exceeded",
    )
