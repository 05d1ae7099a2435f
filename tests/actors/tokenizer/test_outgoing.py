"""Mail that waits for room: in order, joined, bounded, and never in anybody's way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.tokenizer.outgoing import Backlog, Desk, joined
from protocols.errors import ErrorBody
from protocols.messages import (
    Abort,
    Deltas,
    FrontendMail,
    Message,
    Refused,
    SchedulerMail,
    Submit,
    TextLogprob,
    TextRow,
)
from protocols.request import Finish, Usage
from protocols.sampling import SamplingParams
from runtime.ledger import Ledger
from runtime.memory import Exchange
from tests.actors.tokenizer.parts import Client, claim, new_ledger

CAPACITY = 1 << 13


def deltas(*rows: TextRow) -> Deltas:
    return Deltas(rows)


def text_rows(rid: int, text: str, *, ids: bool = False) -> list[TextRow]:
    """One row a character, the last of them final."""
    last = len(text) - 1
    return [
        TextRow(
            rid,
            i,
            char,
            i + 1,
            Finish.LENGTH if i == last else Finish.NONE,
            None,
            Usage(1, i + 1, 0) if i in (0, last) else None,
            i,
            (i,) if ids else (),
            (TextLogprob((char, b"", -1.0)),) if ids else (),
        )
        for i, char in enumerate(text)
    ]


def test_rows_of_a_choice_are_joined_as_if_they_had_come_together() -> None:
    a, b, c = text_rows(1, "abc", ids=True)
    whole = joined(joined(a, b), c)
    assert (whole.offset, whole.text, whole.tokens, whole.finish) == (0, "abc", 3, Finish.LENGTH)
    assert (whole.usage, whole.first_token, whole.token_ids) == (Usage(1, 3, 0), 0, (0, 1, 2))
    assert len(whole.logprobs) == 3
    assert joined(TextRow(1, 0, "x", 0), a).first_token == 0
    assert joined(a, msgspec.structs.replace(b, finish=Finish.NONE)).usage == Usage(1, 1, 0)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_backlog_gives_every_client_what_it_would_have_got(data: st.DataObject) -> None:
    waiting = {rid: text_rows(rid, data.draw(st.text("abc", min_size=1, max_size=12))) for rid in range(3)}
    wanted = {rid: "".join(row.text for row in rows) for rid, rows in waiting.items()}
    clients = {rid: Client() for rid in waiting}
    backlog = Backlog(data.draw(st.integers(8, 4000)))

    def drain_one() -> None:
        message = backlog.take()
        assert isinstance(message, Deltas)
        for row in message.rows:
            clients[row.rid].take(row)

    while any(waiting.values()):
        rids = data.draw(
            st.lists(st.sampled_from([r for r in waiting if waiting[r]]), min_size=1, unique=True)
        )
        backlog.add(Deltas(tuple(waiting[rid].pop(0) for rid in rids)))
        if data.draw(st.booleans()):
            drain_one()
    while backlog:
        drain_one()
    assert {rid: client.text for rid, client in clients.items()} == wanted
    assert all(client.finish is Finish.LENGTH for client in clients.values())


def test_joined_rows_and_messages_stay_of_bounded_size() -> None:
    backlog = Backlog(1 << 18)
    chunk = "x" * 1000
    for i in range(2000):
        backlog.add(deltas(TextRow(1, i * 1000, chunk, i)))
    sizes = []
    total = 0
    while backlog:
        message = backlog.take()
        assert isinstance(message, Deltas)
        sizes.append(sum(len(row.text) for row in message.rows))
        assert all(len(row.text) <= 1 << 13 for row in message.rows)
        total += sizes[-1]
    assert total == 2_000_000
    assert max(sizes) <= 1 << 16
    assert len(sizes) < 40


def test_other_mail_keeps_its_place() -> None:
    backlog = Backlog(1 << 18)
    first, second = Refused(1, ErrorBody(400, "x")), Refused(2, ErrorBody(400, "x"))
    for message in (first, deltas(*text_rows(3, "a")), deltas(*text_rows(4, "b")), second):
        backlog.add(message)
    taken = [backlog.take() for _ in range(3)]
    assert taken[0] == first and taken[2] == second
    assert isinstance(taken[1], Deltas) and len(taken[1].rows) == 2
    assert not backlog


@asynccontextmanager
async def desk_of(exchange: Exchange, ledger: Ledger, capacity: int) -> AsyncIterator[Desk]:
    async with trio.open_nursery() as nursery:
        yield Desk(exchange.outbox("tokenizer.0"), ledger, nursery, structlog.get_logger("test"), capacity)
        nursery.cancel_scope.cancel()


def submit(rid: int, size: int = 0) -> Submit:
    return Submit(rid, 0, 0, b"\x00" * size, SamplingParams())


async def receive_all(exchange: Exchange, name: str, union: object, desk: Desk) -> list[Message]:
    """Read until the desk is empty and so is the ring."""
    inbox = exchange.inbox(name, union)
    found: list[Message] = []
    while True:
        try:
            found += [mail.message for mail in inbox.receive_nowait()]
        except trio.WouldBlock:
            if desk.empty:
                return found
        await trio.sleep(0.01)


async def test_a_full_ring_stops_nobody_and_loses_nothing(autojump_clock: object) -> None:
    exchange = Exchange(("tokenizer.0", "scheduler.0"), ("tokenizer.0", "frontend.0"), capacity=CAPACITY)
    ledger = new_ledger()
    async with desk_of(exchange, ledger, CAPACITY) as desk:
        sent = [submit(i, 800) for i in range(50)]
        for message in sent:
            desk.post("scheduler.0", message)
        assert not desk.empty
        desk.post("frontend.0", deltas(TextRow(1, 0, "hi", 1)))
        free = exchange.inbox("frontend.0", FrontendMail).receive_nowait()
        assert [mail.message for mail in free] == [deltas(TextRow(1, 0, "hi", 1))]
        assert await receive_all(exchange, "scheduler.0", SchedulerMail, desk) == sent
    ledger.close()


async def test_control_mail_overtakes_a_full_ring(autojump_clock: object) -> None:
    exchange = Exchange(("tokenizer.0", "scheduler.0"), capacity=CAPACITY)
    ledger = new_ledger()
    async with desk_of(exchange, ledger, CAPACITY) as desk:
        for i in range(50):
            desk.post("scheduler.0", submit(i, 800))
        desk.post("scheduler.0", Abort(7))
        first = exchange.inbox("scheduler.0", SchedulerMail).receive_nowait()[0]
        assert first.message == Abort(7)
    ledger.close()


async def test_a_frontend_that_reads_nothing_costs_one_row_a_choice(autojump_clock: object) -> None:
    exchange = Exchange(("tokenizer.0", "frontend.0"), capacity=CAPACITY)
    ledger = new_ledger()
    clients = {rid: Client() for rid in range(4)}
    async with desk_of(exchange, ledger, 1 << 20) as desk:
        rows = {rid: text_rows(rid, "abcdefgh" * 100) for rid in clients}
        for step in zip(*rows.values(), strict=True):
            desk.post("frontend.0", Deltas(step))
        in_the_ring = exchange.inbox("frontend.0", FrontendMail).receive_nowait(10_000)
        kept = await receive_all(exchange, "frontend.0", FrontendMail, desk)
        assert len(kept) <= len(clients)
        for message in (*(mail.message for mail in in_the_ring), *kept):
            assert isinstance(message, Deltas)
            for row in message.rows:
                clients[row.rid].take(row)
    assert {client.text for client in clients.values()} == {"abcdefgh" * 100}
    assert all(client.finish is Finish.LENGTH for client in clients.values())
    ledger.close()


async def test_delivered_is_what_has_left(autojump_clock: object) -> None:
    exchange = Exchange(("tokenizer.0", "frontend.0"), capacity=CAPACITY)
    ledger = new_ledger()
    rid = claim(ledger)
    async with desk_of(exchange, ledger, CAPACITY) as desk:
        desk.post("frontend.0", deltas(TextRow(rid, 0, "a" * 3000, 3)))
        assert ledger.delivered(rid) == 3
        for i in range(1, 4):
            desk.post("frontend.0", deltas(TextRow(rid, i * 3000, "a" * 3000, 3 + i)))
        assert ledger.delivered(rid) == 4
        await receive_all(exchange, "frontend.0", FrontendMail, desk)
        assert ledger.delivered(rid) == 6
        ledger.free(rid)
        desk.post("frontend.0", deltas(TextRow(rid, 12000, "a", 7)))
    ledger.close()


async def test_rows_too_large_together_go_one_by_one(autojump_clock: object) -> None:
    exchange = Exchange(("tokenizer.0", "frontend.0"), capacity=CAPACITY)
    ledger = new_ledger()
    async with desk_of(exchange, ledger, CAPACITY) as desk:
        desk.post("frontend.0", deltas(*(TextRow(i, 0, "a" * 3000, 1) for i in range(4))))
        desk.post("frontend.0", deltas(TextRow(9, 0, "a" * 5000, 1)))
        messages = await receive_all(exchange, "frontend.0", FrontendMail, desk)
        rids = [row.rid for message in messages if isinstance(message, Deltas) for row in message.rows]
        assert rids == [0, 1, 2, 3]
    ledger.close()
