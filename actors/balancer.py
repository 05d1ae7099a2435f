"""The balancer actor, which stands between tokenizers and schedulers where there are several replicas.

Where a request went is written into the ledger before it goes there. That is all its state: aborts and
stops follow it by the ledger, a scheduler finds its own requests there after a death, and so does a
new balancer, which sends again what its predecessor may have had in its hands (schedulers know doubles).
"""

from __future__ import annotations

import time
from typing import assert_never

import msgspec
import numpy as np
import trio

from actors.aborts import Aborts
from actors.balance import Balancer, Loads
from actors.post import Post
from actors.stored_requests import StoredRequests
from protocols.board import Column, State
from protocols.messages import Abort, BalancerMail, StopHere, Submit
from protocols.request import Finish
from protocols.spans import SpanName, is_sampled
from runtime.actor import Context
from runtime.board import Row
from runtime.cores import give_way
from runtime.failpoints import reach
from runtime.ledger import StaleRequest

accepts = BalancerMail


async def run(context: Context[BalancerMail]) -> None:
    """Serve until asked to stop. Nothing needs draining: what is open stays in the ledger."""
    give_way()
    dispatcher = Dispatcher(context)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dispatcher.post.deliver)
        dispatcher.recover()
        reach("balancer.recovered")
        context.ready()
        nursery.start_soon(dispatcher.serve)
        await context.stopping.wait()
        nursery.cancel_scope.cancel()


class Dispatcher:
    """Moves mail on, each message to the replica that it belongs to."""

    def __init__(self, context: Context[BalancerMail]) -> None:
        replicas = context.config.dp
        self.post = Post(context.outbox)
        self._context = context
        self._ledger = context.ledger
        self._stored = StoredRequests(context.ledger, context.log)
        self._schedulers = _rows(context, "scheduler")
        self._executors = _rows(context, "executor")
        self._balancer = Balancer(replicas, context.config.balance)
        self._box = context.box
        self._aborted = Aborts()

    async def serve(self) -> None:
        """Mail in, mail out, for ever."""
        while True:
            for mail in await self._context.inbox.receive():
                self.take(mail.message)
            self._context.worked()

    def take(self, message: BalancerMail) -> None:
        """Move one message on; what belongs to a request that is gone is dropped."""
        try:
            match message:
                case Submit():
                    self._submit(message)
                case Abort() | StopHere():
                    self._follow(message)
                case other:
                    assert_never(other)
        except StaleRequest:
            return

    def recover(self) -> None:
        """Take up what an earlier incarnation left: first what it had numbered, in the order of the
        numbers, then what it may have read and not yet assigned."""
        numbered: list[tuple[int, int, Submit]] = []
        unassigned: list[Submit] = []
        for rid in self._ledger.open_rids():
            try:
                submit = self._untouched(rid)
                assignment = self._ledger.assignment(rid)
            except StaleRequest:
                continue
            if submit is not None and assignment is not None:
                numbered.append((assignment[1], assignment[0], submit))
            elif submit is not None:
                unassigned.append(submit)
        for number, replica, submit in sorted(numbered, key=lambda entry: entry[:2]):
            self._balancer.record(replica, number, len(submit.tokens) // 4)
            self._send(replica, number, submit)
        for submit in sorted(unassigned, key=lambda submit: submit.arrived_ns):
            self.take(submit)

    def _untouched(self, rid: int) -> Submit | None:
        """The request, if it was stored and no scheduler has done anything about it yet."""
        if self._ledger.finish(rid) is not Finish.NONE or len(self._ledger.committed(rid)):
            return None
        stored = self._stored.read(rid)
        return stored.submit if stored is not None else None

    def _submit(self, submit: Submit) -> None:
        start, assignment = time.monotonic_ns(), self._ledger.assignment(submit.rid)
        if assignment is None:
            assignment = self._balancer.choose(self._loads(), len(submit.tokens) // 4)
            self._ledger.assign(submit.rid, *assignment)
        self._send(*assignment, submit)
        if is_sampled(submit.trace) or self._box.recording:
            self._box.span(SpanName.ROUTE, submit.rid, start, time.monotonic_ns() - start, a=assignment[0])
        if submit.rid in self._aborted:
            self.post.send(f"scheduler.{assignment[0]}", Abort(submit.rid))

    def _send(self, replica: int, number: int, submit: Submit) -> None:
        self.post.send(f"scheduler.{replica}", msgspec.structs.replace(submit, dispatch=number))

    def _follow(self, message: Abort | StopHere) -> None:
        """Send `message` where its request went; an abort that has overtaken its Submit is kept for it."""
        assignment = self._ledger.assignment(message.rid)
        if assignment is not None:
            self.post.send(f"scheduler.{assignment[0]}", message)
        elif isinstance(message, Abort):
            self._aborted.add(message.rid)

    def _loads(self) -> Loads:
        """LAST_DISPATCH is read before TOKENS_HELD, which the scheduler writes first: what lands in between
        is counted twice for this once, and never not at all."""
        rows = self._schedulers
        last = [row[Column.LAST_DISPATCH] for row in rows]
        return Loads(
            ready=np.array([self._can_work(replica) for replica in range(len(rows))]),
            requests=np.array([row[Column.RUNNING] + row[Column.WAITING] for row in rows], np.int64),
            tokens=np.array([row[Column.TOKENS_HELD] for row in rows], np.int64),
            last_dispatch=np.array(last, np.int64),
        )

    def _can_work(self, replica: int) -> bool:
        pair = self._schedulers[replica], self._executors[replica]
        return all(row[Column.STATE] == State.READY for row in pair)


def _rows(context: Context[BalancerMail], kind: str) -> list[Row]:
    names = [f"{kind}.{replica}" for replica in range(context.config.dp)]
    return [context.board.row(context.rows[name]) for name in names]
