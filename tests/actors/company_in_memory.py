"""Schedulers, executors and a balancer as Trio tasks over mail in memory, with a real ledger and board. The
test plays tokenizer and frontend, and may let any actor die and come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import structlog
import trio
import trio.testing

from actors import balancer, executor
from actors.scheduler import actor as scheduler
from protocols import oracle
from protocols.board import Column, State
from protocols.config import Balance, Config, ExecutorKind, ModelCard
from protocols.ledger import Layout
from protocols.messages import Generate, Submit, TokenizerMail, TokenRow
from protocols.request import Finish, TokenPrompt
from protocols.sampling import SamplingParams
from protocols.stored import StoredRequest
from protocols.wire import encode
from runtime.actor import Context
from runtime.board import Board
from runtime.ledger import Ledger
from runtime.memory import Exchange
from tests.patience import PATIENCE

VOCAB = 997
CONTEXT = 256
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def config(**changes: Any) -> Config:
    """A small company on the hash executor."""
    base = Config(
        model=ModelCard("hash", "/", "Hash", context=CONTEXT, vocab_size=VOCAB, eos=(2,)),
        pages=64,
        page_size=4,
        max_running=8,
        chunk_size=32,
        executor=ExecutorKind.HASH,
        balance=Balance.MINIMUM_TOKENS,
    )
    return msgspec.structs.replace(base, **changes)


def prompt(length: int, first: int = 0) -> bytes:
    return np.arange(first, first + length, dtype="<i4").tobytes()


class Company:
    """Every actor below the tokenizer; `playing` puts it on stage."""

    def __init__(self, options: Config, *, capacity: int = 1 << 20, tokens: int = CONTEXT) -> None:
        replicas = [str(r) for r in range(options.dp)]
        self.down = "balancer" if options.dp > 1 else "scheduler.0"
        edges = [("tokenizer.0", self.down)]
        for r in replicas:
            edges += [(f"scheduler.{r}", f"executor.{r}"), (f"executor.{r}", f"scheduler.{r}")]
            edges += [(f"scheduler.{r}", "tokenizer.0")]
            edges += [("balancer", f"scheduler.{r}")] if options.dp > 1 else []
        self.config = options
        self.names = [f"{kind}.{r}" for kind in ("scheduler", "executor") for r in replicas]
        self.names += ["balancer"] if options.dp > 1 else []
        self.exchange = Exchange(*edges, capacity=capacity)
        self.inbox = self.exchange.inbox("tokenizer.0", TokenizerMail)
        self.outbox = self.exchange.outbox("tokenizer.0")
        self.board = Board.create(len(self.names))
        self.rows = {name: index for index, name in enumerate(self.names)}
        self.ledger = Ledger.create(Layout(64, tokens, 8192, 65536))
        self.incarnations = dict.fromkeys(self.names, 0)
        self.contexts: dict[str, Context[Any]] = {}
        self.scopes: dict[str, trio.CancelScope] = {}
        self.submits: dict[int, Submit] = {}
        self.output: dict[int, list[int]] = {}
        self.finish: dict[int, TokenRow] = {}

    def close(self) -> None:
        self.ledger.close()
        self.board.close()

    async def start(self, nursery: trio.Nursery, name: str) -> None:
        """Start an actor, or its next incarnation, and wait until it is ready."""
        self.incarnations[name] += 1
        row = self.board.row(self.rows[name])
        for column in Column:
            row[column] = 0
        row[Column.INCARNATION] = self.incarnations[name]
        kind = name.split(".")[0]
        module: ModuleType = {"scheduler": scheduler, "executor": executor, "balancer": balancer}[kind]
        self.contexts[name] = context = Context(
            name=name,
            index=int(name.partition(".")[2] or 0),
            incarnation=self.incarnations[name],
            config=self.config,
            inbox=self.exchange.inbox(name, module.accepts),
            outbox=self.exchange.outbox(name, self.incarnations[name]),
            vitals=row,
            board=self.board,
            rows=self.rows,
            ledger=self.ledger,
            log=structlog.get_logger(),
        )
        await nursery.start(self._run, module, context)
        while row[Column.STATE] != State.READY:
            await trio.lowlevel.checkpoint()

    async def _run(
        self,
        module: ModuleType,
        context: Context[Any],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.CancelScope() as self.scopes[context.name]:
            task_status.started()
            await module.run(context)

    async def kill(self, name: str) -> None:
        """Let it die where it waits; its mail stays where it is."""
        self.scopes[name].cancel()
        await trio.testing.wait_all_tasks_blocked()
        self.contexts[name].vitals[Column.STATE] = State.DOWN

    async def start_all(self, nursery: trio.Nursery) -> None:
        """Executors first, as they would be ready last."""
        for name in sorted(self.names, key=lambda name: not name.startswith("executor")):
            await self.start(nursery, name)

    def store(self, tokens: bytes, *, max_tokens: int = 12, seed: int = 1, **sampling: Any) -> Submit:
        """What frontend and tokenizer do: claim a slot, write the record."""
        rid = self.ledger.claim(0)
        assert rid is not None
        params = SamplingParams(seed=seed, max_tokens=max_tokens, **sampling)
        submit = Submit(rid, 0, 0, tokens, params, trace=TRACE)
        generate = Generate((rid,), 0, TokenPrompt(b""), params)
        self.ledger.put_request(rid, encode(StoredRequest(generate, submit)))
        self.submits[rid] = submit
        self.output[rid] = []
        return submit

    def submit(self, tokens: bytes, **sampling: Any) -> int:
        """A new request on its way."""
        submit = self.store(tokens, **sampling)
        self.outbox.send_nowait(self.down, submit)
        return submit.rid

    async def receive(self) -> None:
        """One receive: rows are cut where they overlap, gaps are filled from the ledger."""
        for mail in await self.inbox.receive():
            for row in mail.message.rows:
                self._take(row)

    def _take(self, row: TokenRow) -> None:
        output = self.output[row.rid]
        if row.rid in self.finish:
            return
        if row.start > len(output):
            output += self.ledger.committed(row.rid, len(output))[: row.start - len(output)].tolist()
        output += row.tokens[len(output) - row.start :]
        if row.finish is not Finish.NONE:
            self.finish[row.rid] = row

    async def finished(self, *rids: int) -> None:
        """Wait until all of `rids` have finished; frees no slot."""
        with trio.fail_after(PATIENCE):
            while not set(rids) <= set(self.finish):
                await self.receive()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the others run until `condition` holds, without reading any mail."""
        with trio.fail_after(PATIENCE):
            while not condition():
                await trio.sleep(0.001)

    def verify(self, *rids: int) -> None:
        """What came is what the oracle says, and what the ledger has."""
        for rid in rids:
            submit = self.submits[rid]
            tokens, finish = oracle.continuation(submit.tokens, submit.sampling, 0, VOCAB)
            assert (tuple(self.output[rid]), self.finish[rid].finish) == (tokens, finish)
            assert tuple(self.ledger.committed(rid).tolist()) == tokens
            assert self.ledger.finish(rid) is finish


@asynccontextmanager
async def playing(company: Company, *, start: bool = True) -> AsyncIterator[trio.Nursery]:
    """The company on stage."""
    try:
        async with trio.open_nursery() as nursery:
            if start:
                await company.start_all(nursery)
            yield nursery
            nursery.cancel_scope.cancel()
    finally:
        company.close()
