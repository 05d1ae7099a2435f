"""The actor itself, over in-memory rings and a real ledger."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog
import trio

from actors.tokenizer import actor
from actors.tokenizer.actor import INLINE_CHARS
from protocols.board import Column, State
from protocols.errors import StartError
from protocols.messages import (
    Abort,
    Decode,
    Deltas,
    Encode,
    FrontendMail,
    Generate,
    Message,
    Refused,
    Replay,
    SchedulerMail,
    StopHere,
    Submit,
    TextRow,
    TokenRow,
    Tokens,
)
from protocols.request import ChatPrompt, Finish, OutputOptions, TextPrompt, TokenPrompt
from runtime.actor import Context
from runtime.board import Board
from runtime.ledger import Ledger
from runtime.memory import Exchange
from tests.actors.tokenizer import builders, templates
from tests.actors.tokenizer.parts import Client, chat, codec_of, config_of, generate, new_ledger
from tests.patience import PATIENCE

EDGES = (
    ("frontend.0", "tokenizer.0"),
    ("scheduler.0", "tokenizer.0"),
    ("tokenizer.0", "frontend.0"),
    ("tokenizer.0", "scheduler.0"),
)


class House:
    """Everything around one tokenizer actor; the test is its frontend and its scheduler."""

    def __init__(self, directory: pathlib.Path, capacity: int = 1 << 20, **options: Any) -> None:
        self.exchange = Exchange(*EDGES, capacity=capacity)
        self.ledger: Ledger = new_ledger()
        self.board = Board.create(1)
        self.config = config_of(codec_of("byte_level"), directory, **options)
        self.from_frontend = self.exchange.outbox("frontend.0")
        self.from_scheduler = self.exchange.outbox("scheduler.0")
        self._inboxes = {
            "frontend.0": self.exchange.inbox("frontend.0", FrontendMail),
            "scheduler.0": self.exchange.inbox("scheduler.0", SchedulerMail),
        }

    def context(self, incarnation: int = 1) -> Context[Any]:
        return Context(
            name="tokenizer.0",
            index=0,
            incarnation=incarnation,
            config=self.config,
            inbox=self.exchange.inbox("tokenizer.0", actor.accepts),
            outbox=self.exchange.outbox("tokenizer.0", incarnation),
            vitals=self.board.row(0),
            board=self.board,
            rows={"tokenizer.0": 0},
            ledger=self.ledger,
            log=structlog.get_logger("test"),
        )

    @asynccontextmanager
    async def running(self, incarnation: int = 1) -> AsyncIterator[Context[Any]]:
        """The actor, killed at the end."""
        context = self.context(incarnation)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(actor.run, context)
                yield context
                nursery.cancel_scope.cancel()

    async def ask(self, message: Generate) -> None:
        await self.from_frontend.send("tokenizer.0", message)

    async def step(self, *rows: TokenRow) -> None:
        await self.from_scheduler.send("tokenizer.0", Tokens(rows))

    async def receive(self, name: str) -> list[Message]:
        return [mail.message for mail in await self._inboxes[name].receive()]

    async def submitted(self, count: int = 1) -> list[Submit]:
        found: list[Submit] = []
        while len(found) < count:
            for message in await self.receive("scheduler.0"):
                assert isinstance(message, Submit)
                found.append(message)
        return found

    async def rows(self, count: int = 1) -> list[TextRow]:
        found: list[TextRow] = []
        while len(found) < count:
            for message in await self.receive("frontend.0"):
                assert isinstance(message, Deltas)
                found += message.rows
        return found

    def close(self) -> None:
        self.ledger.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return builders.write_model(
        tmp_path_factory.mktemp("model"), builders.byte_level(), template=templates.CHATML
    )


@pytest.fixture
def house(directory: pathlib.Path) -> Iterator[House]:
    house = House(directory)
    yield house
    house.close()


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(codec_of("byte_level").encode(text, add_special=False).tolist())


async def test_a_request_from_end_to_end(house: House) -> None:
    async with house.running() as context:
        message = generate(house.ledger, chat("Hello"), n=2)
        await house.ask(message)
        submits = await house.submitted(2)
        assert [submit.rid for submit in submits] == list(message.rids)
        ids = np.frombuffer(submits[0].tokens, "<i4").tolist()
        assert codec_of("byte_level").decode(ids, skip_special=False) == (
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        )
        assert context.vitals[Column.STATE] == State.READY
        clients = {rid: Client() for rid in message.rids}
        for i, token in enumerate(ids_of("Hi there")):
            await house.step(*(TokenRow(rid, i, (token,)) for rid in message.rids))
            for row in await house.rows(2):
                clients[row.rid].take(row)
        count = len(ids_of("Hi there"))
        await house.step(*(TokenRow(rid, count, (), Finish.LENGTH) for rid in message.rids))
        for row in await house.rows(2):
            clients[row.rid].take(row)
        assert {client.text for client in clients.values()} == {"Hi there"}
        assert house.ledger.delivered(message.rids[0]) == count
        assert context.vitals[Column.OPEN_REQUESTS] == 0
        assert context.vitals[Column.REQUESTS_TOTAL] == 1


async def test_one_deltas_for_a_step(house: House) -> None:
    async with house.running():
        messages = [generate(house.ledger) for _ in range(5)]
        for message in messages:
            await house.ask(message)
        await house.submitted(5)
        await house.step(*(TokenRow(message.rids[0], 0, ids_of("a")) for message in messages))
        (deltas,) = await house.receive("frontend.0")
        assert isinstance(deltas, Deltas)
        assert len(deltas.rows) == 5


async def test_a_bad_request_harms_nobody(house: House) -> None:
    async with house.running():
        good = generate(house.ledger)
        bad = [
            generate(house.ledger, TextPrompt("")),
            generate(house.ledger, TokenPrompt(b"\xff" * 8)),
            generate(house.ledger, chat("x" * 3000)),
            generate(house.ledger, output=OutputOptions(stop=("",))),
        ]
        for message in (*bad, good):
            await house.ask(message)
        assert [submit.rid for submit in await house.submitted()] == [good.rids[0]]
        refusals = [await house.receive("frontend.0")]
        while sum(map(len, refusals)) < len(bad):
            refusals.append(await house.receive("frontend.0"))
        found = [message for part in refusals for message in part]
        assert {m.rid for m in found if isinstance(m, Refused)} == {message.rids[0] for message in bad}
        assert {m.error.status for m in found if isinstance(m, Refused)} == {400}


def unseen(length: int) -> ChatPrompt:
    """A chat whose template shows little of it."""
    return ChatPrompt(msgspec.json.encode([{"role": "user", "content": "Hi", "unseen": "x" * length}]))


async def test_a_long_prompt_is_encoded_aside(house: House) -> None:
    """A short request that came later is not held up by it."""
    async with house.running():
        long = generate(house.ledger, unseen(500_000))
        short = generate(house.ledger)
        await house.ask(long)
        await house.ask(short)
        assert [submit.rid for submit in await house.submitted(2)] == [short.rids[0], long.rids[0]]


async def test_a_burst_of_requests_lets_others_have_a_turn(house: House) -> None:
    async with house.running() as context:
        messages = [generate(house.ledger) for _ in range(16)]
        for message in messages:
            await house.ask(message)
        first = await house.submitted()
        assert len(first) < len(messages)
        assert context.vitals[Column.REQUESTS_TOTAL] < len(messages)
        assert len(first) + len(await house.submitted(len(messages) - len(first))) == len(messages)


async def test_an_abort_during_encoding_is_kept_in_mind(house: House) -> None:
    async with house.running():
        long = generate(house.ledger, unseen(2 * INLINE_CHARS))
        await house.ask(long)
        await house.from_frontend.send("tokenizer.0", Abort(long.rids[0]))
        assert await house.receive("scheduler.0") == [Abort(long.rids[0])]
        (refused,) = await house.receive("frontend.0")
        assert isinstance(refused, Refused)
        assert refused.error.status == 499


async def test_mail_is_read_though_nobody_below_reads(directory: pathlib.Path) -> None:
    """The scheduler's ring is full of requests; text must flow up all the same."""
    house = House(directory, capacity=2048)
    async with house.running():
        first = generate(house.ledger)
        await house.ask(first)
        await house.submitted()
        waiting = [generate(house.ledger, "x" * 60) for _ in range(12)]
        for message in waiting:
            await house.ask(message)
        for i in range(20):
            await house.step(TokenRow(first.rids[0], i, ids_of("a")))
            assert (await house.rows())[0].text == "a"
        assert {submit.rid for submit in await house.submitted(12)} == {m.rids[0] for m in waiting}
    house.close()


async def test_a_new_incarnation_goes_on(house: House) -> None:
    client = Client()
    message = generate(house.ledger, output=OutputOptions(stop=("END",)))
    rid = message.rids[0]
    tokens = tuple(token for char in "one two EN END more" for token in ids_of(char))

    async def step(start: int, end: int) -> None:
        house.ledger.commit(rid, tokens[start:end])
        await house.step(TokenRow(rid, start, tokens[start:end]))

    async with house.running(1):
        await house.ask(message)
        await house.submitted()
        await step(0, 9)
        client.take((await house.rows())[0])
    house.ledger.commit(rid, tokens[9:11])
    async with house.running(2):
        await step(11, len(tokens))
        while not client.finish:
            for row in await house.rows():
                client.take(row)
        assert (client.text, client.stop, client.tokens) == ("one two EN ", "END", 14)
        assert await house.receive("scheduler.0") == [StopHere(rid, 14)]


async def test_a_request_that_was_never_answered_is_submitted_again(house: House) -> None:
    message = generate(house.ledger)
    async with house.running(1):
        await house.ask(message)
        first = await house.submitted()
    async with house.running(2):
        assert await house.submitted() == first


async def test_it_finishes_what_is_open_before_it_stops(house: House) -> None:
    context = house.context()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(actor.run, context)
            message = generate(house.ledger)
            await house.ask(message)
            await house.submitted()
            context.stopping.set()
            await house.step(TokenRow(message.rids[0], 0, ids_of("a")))
            assert (await house.rows())[0].text == "a"
            await house.step(TokenRow(message.rids[0], 1, (), Finish.LENGTH))
            assert (await house.rows())[0].finish is Finish.LENGTH
    assert not nursery.cancel_scope.cancelled_caught


async def test_without_a_tokenizer_it_does_not_start(tmp_path: pathlib.Path) -> None:
    house = House(tmp_path)
    with pytest.raises(StartError, match="holds no tokenizer"):
        await actor.run(house.context())
    house.close()


def test_what_it_accepts() -> None:
    assert actor.accepts == Generate | Abort | Tokens | Replay | Encode | Decode
