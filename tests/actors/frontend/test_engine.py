"""The engine's side: what rows become, when slots are freed, and what a dead tokenizer costs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from actors.frontend import ledger_slots
from actors.frontend.engine import Engine
from actors.frontend.generation import Generation
from actors.frontend.jobs import Job
from protocols.config import Config
from protocols.errors import ErrorBody, UserError
from protocols.ledger import Layout
from protocols.messages import (
    Abort,
    Deltas,
    FrontendMail,
    Generate,
    Refused,
    TextLogprob,
    TextRow,
    TokenizerMail,
)
from protocols.request import Finish, OutputOptions, TextPrompt, slot_of
from protocols.sampling import SamplingParams
from runtime.channel import Inbox, Mail
from runtime.ledger import Ledger
from runtime.memory import Exchange
from tests.actors.frontend.harness import CARD


class Notes:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.text: dict[int, str] = {}
        self.rows: list[TextRow] = []
        self.error: ErrorBody | None = None
        self.pumps = 0
        self.bug = False

    def feed(self, index: int, row: TextRow) -> None:
        if self.bug:
            raise ZeroDivisionError
        self.text[index] = self.text.get(index, "") + row.text
        self.rows.append(row)

    def fail(self, error: ErrorBody) -> None:
        self.error = error

    def pump(self) -> None:
        self.pumps += 1


class Broken(Notes):
    """A sink with bugs wherever it is called."""

    def feed(self, index: int, row: TextRow) -> None:
        raise ZeroDivisionError

    def fail(self, error: ErrorBody) -> None:
        self.error = error
        raise ZeroDivisionError

    def pump(self) -> None:
        raise ZeroDivisionError


class Bench:
    """An engine, the ledger, and the tokenizers' inboxes."""

    def __init__(self, ledger: Ledger, tokenizers: int, capacity: int) -> None:
        names = [f"tokenizer.{i}" for i in range(tokenizers)]
        exchange = Exchange(*(("frontend.0", name) for name in names), capacity=capacity)
        config = Config(model=CARD, tokenizers=tokenizers, queue_seconds=1e-6)
        self.ledger = ledger
        self.engine = Engine(0, config, ledger, exchange.outbox("frontend.0"), structlog.get_logger())
        self.inboxes: list[Inbox[Any]] = [exchange.inbox(name, TokenizerMail) for name in names]
        self.notes = Notes()

    async def start(self, n: int = 1, prompts: int = 1, **sampling: Any) -> Generation:
        texts = tuple(TextPrompt(f"prompt {i}") for i in range(prompts))
        return await self.engine.start(Job(texts, SamplingParams(**sampling), OutputOptions(), n), self.notes)

    def mail(self, tokenizer: int = 0) -> list[Any]:
        """Everything that has arrived at a tokenizer."""
        try:
            return [mail.message for mail in self.inboxes[tokenizer].receive_nowait()]
        except trio.WouldBlock:
            return []

    def deliver(self, *messages: FrontendMail) -> None:
        self.engine.deliver([Mail("tokenizer.0", message) for message in messages])


@contextlib.contextmanager
def bench(*, slots: int = 8, tokenizers: int = 1, capacity: int = 1 << 20) -> Iterator[Bench]:
    ledger = Ledger.create(Layout(slots=slots, tokens=64, request_bytes=4096, extra_bytes=4096))
    with contextlib.closing(ledger):
        yield Bench(ledger, tokenizers, capacity)


@contextlib.asynccontextmanager
async def reaped_bench() -> AsyncIterator[Bench]:
    """A bench with the task beside it that frees slots."""
    with bench() as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.engine.slots.reap)
            yield b
            nursery.cancel_scope.cancel()


def row(rid: int, offset: int, text: str, finish: Finish = Finish.NONE, **fields: Any) -> TextRow:
    return TextRow(rid, offset, text, 1, finish, **fields)


async def test_a_generation_from_claim_to_free() -> None:
    with bench() as b:
        generation = await b.start(n=2)
        (mail,) = b.mail()
        assert isinstance(mail, Generate)
        assert mail.rids == tuple(b.ledger.open_rids()) and mail.origin == 0
        assert mail.sampling.seed is not None and mail.arrived_ns > 0
        one, two = mail.rids
        b.deliver(Deltas((row(one, 0, "a"), row(two, 0, "x"))), Deltas((row(one, 1, "b"),)))
        assert b.notes.text == {0: "ab", 1: "x"} and b.notes.pumps == 1
        assert generation.begun.is_set() and not generation.done.is_set()
        b.ledger.commit(one, [1], finish=Finish.STOP)
        b.ledger.commit(two, [1], finish=Finish.STOP)
        b.deliver(Deltas((row(one, 2, "", Finish.STOP),)))
        assert b.ledger.open_rids() == [two]
        b.deliver(Deltas((row(two, 1, "y", Finish.LENGTH),)))
        assert generation.done.is_set() and generation.error is None
        assert b.ledger.open_rids() == [] and b.engine.open == 0
        b.engine.abort(generation)
        assert b.mail() == []


async def test_prompts_of_a_batch_draw_their_own_seeds_and_have_their_own_mail() -> None:
    with bench(tokenizers=2) as b:
        await b.start(n=2, prompts=2)
        mails = b.mail(0) + b.mail(1)
        assert len({mail.sampling.seed for mail in mails}) == 2
        for tokenizer in (0, 1):
            assert all(slot_of(mail.rids[0]) % 2 == tokenizer for mail in b.mail(tokenizer))
        b.deliver(*(Deltas((row(rid, 0, str(rid)),)) for mail in mails for rid in mail.rids))
        assert [b.notes.text[i] for i in range(4)] == [str(rid) for mail in mails for rid in mail.rids]
    with bench() as b:
        await b.start(prompts=2, seed=5)
        assert [mail.sampling.seed for mail in b.mail()] == [5, 5]


@given(
    st.text(min_size=1, max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=20)
)
def test_replayed_rows_are_cut(text: str, pieces: list[tuple[int, int]]) -> None:
    """Rows that overlap what came before, in any way, add up to the text."""

    async def body() -> None:
        with bench() as b:
            generation = await b.start()
            rid, seen = generation.choices[0].rid, 0
            for start, size in [*pieces, (0, len(text))]:
                start = min(start, seen)
                b.deliver(Deltas((row(rid, start, text[start : start + size]),)))
                seen = max(seen, min(start + size, len(text)))
            assert b.notes.text[0] == text

    trio.run(body)


async def test_a_gap_is_an_error_and_never_wrong_text() -> None:
    with bench() as b:
        generation = await b.start()
        rid = generation.choices[0].rid
        b.deliver(Deltas((row(rid, 0, "ab"), row(rid, 3, "d"))))
        assert b.notes.text[0] == "ab"
        assert generation.error is not None and generation.error.status == 500
        assert b.notes.error == generation.error
        assert [type(mail) for mail in b.mail()] == [Abort, Generate]


async def test_replayed_logprobs_and_ids_are_cut() -> None:
    with bench() as b:
        rid = (await b.start()).choices[0].rid
        entries = [TextLogprob((c, c.encode(), -1.0)) for c in "abc"]
        b.deliver(
            Deltas((row(rid, 0, "ab", first_token=0, token_ids=(1, 2), logprobs=tuple(entries[:2])),)),
            Deltas((row(rid, 0, "abc", first_token=0, token_ids=(1, 2, 3), logprobs=tuple(entries)),)),
            Deltas((row(rid, 3, "", first_token=2, token_ids=(3,), logprobs=tuple(entries[2:])),)),
        )
        assert [token for one in b.notes.rows for token in one.token_ids] == [1, 2, 3]
        assert [entry for one in b.notes.rows for entry in one.logprobs] == entries


async def test_only_stop_tokens_that_the_client_named_are_shown() -> None:
    with bench() as b:
        one, two = (await b.start(stop_token_ids=(5,))).choices[0], (await b.start()).choices[0]
        b.deliver(
            Deltas((row(one.rid, 0, "", Finish.STOP, stop=5), row(two.rid, 0, "", Finish.STOP, stop=5)))
        )
        assert [shown.stop for shown in b.notes.rows] == [5, None]


async def test_a_refusal_ends_every_choice_and_the_whole_batch() -> None:
    with bench() as b:
        generation = await b.start(n=2, prompts=2)
        error = ErrorBody(400, "Too long.", code="context_length_exceeded")
        b.mail()
        b.deliver(Refused(generation.mails[0].rids[0], error))
        assert generation.error == error and generation.done.is_set() and b.notes.error == error
        assert b.engine.open == 0
        assert {mail.rid for mail in b.mail()} == set(generation.mails[1].rids)
        assert set(b.ledger.open_rids()) == set(generation.mails[1].rids)


async def test_an_engine_error_ends_the_generation() -> None:
    with bench() as b:
        generation = await b.start(n=2)
        error = ErrorBody(500, "NaN.", "server_error")
        b.deliver(Deltas((row(generation.choices[1].rid, 0, "", Finish.ERROR, error=error),)))
        assert generation.error == error and b.engine.open == 0


async def test_a_bug_in_one_sink_is_nobody_elses() -> None:
    with bench() as b:
        broken = await b.start()
        bad, b.notes = b.notes, Notes()
        bad.bug = True
        fine = await b.start()
        b.deliver(
            Deltas((row(broken.choices[0].rid, 0, "a"), row(fine.choices[0].rid, 0, "a"))),
            Deltas((row(broken.choices[0].rid, 1, "b"), row(fine.choices[0].rid, 1, "b"))),
        )
        assert broken.error is not None and bad.error is not None
        assert b.notes.text == {0: "ab"} and fine.error is None


async def test_no_room_is_a_503_and_claims_nothing() -> None:
    with bench(slots=4) as b:
        await b.start(n=2)
        with pytest.raises(UserError) as caught:
            await b.start(n=3)
        body = caught.value.body
        assert (body.status, body.code, body.retry_after) == (503, "server_overloaded", 1)
        assert len(b.ledger.open_rids()) == 2
        await b.start(n=2)
        with pytest.raises(UserError) as caught:
            await b.start(n=5)
        assert (caught.value.body.status, caught.value.body.param) == (400, "n")


async def test_a_message_beyond_the_ring_is_a_413() -> None:
    with bench(capacity=1000) as b:
        job = Job((TextPrompt("x" * 5000),), SamplingParams(), OutputOptions())
        with pytest.raises(UserError) as caught:
            await b.engine.start(job, b.notes)
        assert caught.value.body.status == 413
        assert b.ledger.open_rids() == [] and b.engine.open == 0


async def test_a_start_that_is_cancelled_at_a_full_ring_frees_its_slots() -> None:
    with bench(capacity=600) as b:
        job = Job((TextPrompt("x" * 150), TextPrompt("y" * 150)), SamplingParams(), OutputOptions())
        with trio.move_on_after(0.01) as scope:
            while True:
                await b.engine.start(job, b.notes)
        assert scope.cancelled_caught
        sent = {rid for mail in b.mail() if isinstance(mail, Generate) for rid in mail.rids}
        assert set(b.ledger.open_rids()) == sent


async def test_aborts_free_slots_once_their_finish_is_committed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with reaped_bench() as b:
        generation = await b.start()
        (rid,) = generation.mails[0].rids
        b.engine.abort(generation)
        assert generation.done.is_set()
        assert [type(mail) for mail in b.mail()] == [Abort, Generate]
        b.deliver(Deltas((row(rid, 0, "late"),)))
        assert b.notes.text == {}
        await trio.sleep(0.4)
        assert b.ledger.open_rids() == [rid] and b.mail() == []
        b.ledger.commit(rid, [], finish=Finish.ABORT)
        await trio.sleep(2 * ledger_slots.REAP_EVERY)
        assert b.ledger.open_rids() == []


async def test_aborts_are_repeated_and_slots_freed_at_last(autojump_clock: trio.testing.MockClock) -> None:
    async with reaped_bench() as b:
        generation = await b.start()
        b.engine.abort(generation)
        await trio.sleep(ledger_slots.GIVE_UP - 0.1)
        assert b.ledger.open_rids() != []
        assert len(b.mail()) > ledger_slots.GIVE_UP / ledger_slots.ABORT_AGAIN - 3
        await trio.sleep(0.2)
        assert b.ledger.open_rids() == []


async def test_an_abort_that_overtook_its_request_is_settled_by_the_refusal() -> None:
    with bench() as b:
        generation = await b.start()
        b.engine.abort(generation)
        b.deliver(Refused(generation.choices[0].rid, ErrorBody(499, "Aborted.")))
        assert b.ledger.open_rids() == []


async def test_a_stop_string_frees_its_slot_when_the_scheduler_has_heard_of_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with reaped_bench() as b:
        generation = await b.start()
        rid = generation.choices[0].rid
        b.mail()
        b.deliver(Deltas((row(rid, 0, "a", Finish.STOP, stop="END"),)))
        assert generation.done.is_set()
        assert b.ledger.open_rids() == [rid]
        b.ledger.commit(rid, [1], finish=Finish.STOP)
        await trio.sleep(2 * ledger_slots.REAP_EVERY)
        assert b.ledger.open_rids() == [] and b.mail() == []


async def test_what_a_dead_tokenizer_may_have_lost_is_sent_again() -> None:
    with bench() as b:
        lost, stored, begun = [await b.start() for _ in range(3)]
        b.mail()
        b.ledger.put_request(stored.choices[0].rid, b"record")
        b.deliver(Deltas((row(begun.choices[0].rid, 0, "a"),)))
        await b.engine.resend(0)
        assert b.mail() == list(lost.mails)
        await b.engine.resend(1)
        assert b.mail() == []


async def test_only_what_has_no_token_waits_too_long(autojump_clock: trio.testing.MockClock) -> None:
    with bench() as b:
        begun, waiting = await b.start(), await b.start()
        b.deliver(Deltas((row(begun.choices[0].rid, 0, "a"),)))
        with trio.move_on_after(1):
            await b.engine.expire()
        assert not begun.done.is_set()
        assert waiting.error is not None and waiting.error.status == 503
        assert b.notes.error == waiting.error


async def test_a_broken_sink_that_waits_too_long_ends_alone(autojump_clock: trio.testing.MockClock) -> None:
    with bench() as b:
        good, b.notes = b.notes, Broken()
        broken = await b.start()
        b.notes = good
        waiting = await b.start()
        with trio.move_on_after(1) as scope:
            await b.engine.expire()
        assert scope.cancelled_caught
        assert broken.error is not None and broken.done.is_set()
        assert waiting.error is not None and good.error == waiting.error and good.pumps == 1


@pytest.mark.parametrize("refused", [True, False])
async def test_a_sink_that_cannot_even_fail_disturbs_nobody(refused: bool) -> None:
    with bench() as b:
        good, b.notes = b.notes, Broken()
        broken = await b.start()
        b.notes = good
        other = await b.start()
        rid = broken.choices[0].rid
        message = Refused(rid, ErrorBody(503, "No.")) if refused else Deltas((row(rid, 0, "a"),))
        b.deliver(message, Deltas((row(other.choices[0].rid, 0, "b"),)))
        assert broken.done.is_set() and good.text == {0: "b"} and good.pumps == 1
