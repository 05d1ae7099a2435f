"""The scheduler actor between a real ledger, a real board and the executor actor."""

from __future__ import annotations

import pytest
import structlog.testing
import trio
import trio.testing

from protocols.board import Column, State
from protocols.messages import Abort, StopHere
from protocols.request import Finish
from protocols.stored import unpack_logprobs
from tests.actors.company_in_memory import TRACE, Company, config, playing, prompt


@pytest.mark.parametrize("depth", [1, 2])
async def test_requests_are_served_committed_and_counted(depth: int) -> None:
    company = Company(config(depth=depth))
    async with playing(company):
        rids = [company.submit(prompt(n + 3, first=n), max_tokens=5 + n) for n in range(12)]
        await company.finished(*rids)
        company.verify(*rids)
        await trio.testing.wait_all_tasks_blocked()
        vitals = company.contexts["scheduler.0"].vitals
        assert vitals[Column.REQUESTS_TOTAL] == 12
        assert vitals[Column.GENERATED_TOKENS_TOTAL] == sum(5 + n for n in range(12))
        assert (vitals[Column.RUNNING], vitals[Column.WAITING], vitals[Column.TOKENS_HELD]) == (0, 0, 0)
        pages = [vitals[c] for c in (Column.PAGES_FREE, Column.PAGES_CACHED, Column.PAGES_OWNED)]
        assert sum(pages) == vitals[Column.PAGES_TOTAL] == 64 and pages[2] == 0
        assert vitals[Column.WORK_TICK] and vitals[Column.TURN_NS_TOTAL]


async def test_logprobs_are_committed_and_sent() -> None:
    company = Company(config())
    async with playing(company):
        rid = company.submit(prompt(5), max_tokens=4, logprobs=2)
        await company.finished(rid)
        company.verify(rid)
        records = unpack_logprobs(company.ledger.extras(rid))
        assert len(records) == 4 and all(len(record.ids) == 2 for record in records)


@pytest.mark.parametrize("victim", ["scheduler.0", "executor.0"])
@pytest.mark.parametrize("receipts", [0, 1, 5, 9])
async def test_after_a_death_every_stream_goes_on_exactly(victim: str, receipts: int) -> None:
    company = Company(config(pages=24))
    async with playing(company) as nursery:
        rids = [company.submit(prompt(n + 3, first=n), max_tokens=20) for n in range(6)]
        for _ in range(receipts):
            await company.receive()
        await company.kill(victim)
        await company.start(nursery, victim)
        await company.finished(*rids)
        company.verify(*rids)


async def test_scheduler_and_executor_die_together() -> None:
    company = Company(config())
    async with playing(company) as nursery:
        rids = [company.submit(prompt(n + 3, first=n), max_tokens=20) for n in range(6)]
        await company.receive()
        for victim in ("executor.0", "scheduler.0"):
            await company.kill(victim)
        for victim in ("scheduler.0", "executor.0"):
            await company.start(nursery, victim)
        await company.finished(*rids)
        company.verify(*rids)


async def test_an_executor_that_was_announced_to_the_dead_and_is_not_ready_yet_is_found() -> None:
    company = Company(config())
    async with playing(company) as nursery:
        rid = company.submit(prompt(4), max_tokens=20)
        await company.receive()
        await company.kill("scheduler.0")
        company.contexts["executor.0"].vitals[Column.STATE] = State.STARTING
        await company.start(nursery, "scheduler.0")
        await company.finished(rid)
        company.verify(rid)


async def test_a_request_read_by_the_dead_is_found_in_the_ledger() -> None:
    company = Company(config())
    async with playing(company, start=False) as nursery:
        stored = company.store(prompt(7))
        sent = company.submit(prompt(9))
        await company.start_all(nursery)
        await company.finished(stored.rid, sent)
        company.verify(stored.rid, sent)
        assert company.contexts["scheduler.0"].vitals[Column.REQUESTS_TOTAL] == 2, "one of them twice"


async def test_a_finish_that_was_never_told_is_told_by_the_next_incarnation() -> None:
    company = Company(config())
    async with playing(company, start=False) as nursery:
        submit = company.store(prompt(3), stop_token_ids=(9,))
        company.ledger.commit(submit.rid, [5, 9], finish=Finish.STOP)
        failed = company.store(prompt(3))
        company.ledger.commit(failed.rid, (), finish=Finish.ERROR)
        await company.start_all(nursery)
        await company.finished(submit.rid, failed.rid)
        assert company.output[submit.rid] == [5, 9]
        assert company.finish[submit.rid].stop_token == 9
        assert company.finish[failed.rid].error is not None


async def test_aborts_and_stops_are_noted_for_later_incarnations() -> None:
    company = Company(config(step_ms=2.0))
    async with playing(company) as nursery:
        aborted = company.submit(prompt(3), max_tokens=200)
        stopped = company.submit(prompt(4), max_tokens=200)
        await company.receive()
        company.outbox.send_nowait("scheduler.0", Abort(aborted), StopHere(stopped, 1))
        await company.until(lambda: company.ledger.finish(stopped) is not Finish.NONE)
        assert company.ledger.finish(aborted) is Finish.ABORT
        assert company.ledger.finish(stopped) is Finish.STOP
        counts = [len(company.ledger.committed(rid)) for rid in (aborted, stopped)]
        await company.kill("scheduler.0")
        await company.start(nursery, "scheduler.0")
        other = company.submit(prompt(5))
        await company.finished(other)
        assert [len(company.ledger.committed(rid)) for rid in (aborted, stopped)] == counts


async def test_a_request_whose_slot_was_freed_is_dropped() -> None:
    company = Company(config())
    async with playing(company):
        gone = company.submit(prompt(3), max_tokens=200)
        other = company.submit(prompt(5), max_tokens=30)
        await company.receive()
        company.ledger.free(gone)
        await company.finished(other)
        company.verify(other)
        assert len(company.output[gone]) < 200
        await trio.testing.wait_all_tasks_blocked()
        assert company.contexts["scheduler.0"].vitals[Column.RUNNING] == 0


async def test_what_the_ledger_refuses_ends_in_an_error_and_harms_nobody() -> None:
    company = Company(config(), tokens=10)
    with structlog.testing.capture_logs() as lines:
        async with playing(company):
            long = company.submit(prompt(3), max_tokens=50)
            short = company.submit(prompt(5), max_tokens=9)
            await company.finished(long, short)
            company.verify(short)
            assert company.finish[long].finish is Finish.ERROR and company.finish[long].error is not None
            assert company.ledger.finish(long) is Finish.ERROR
    (line,) = [line for line in lines if line["event"] == "commit_failed"]
    assert (line["rid"], line["trace_id"]) == (long, TRACE.split("-")[1])


async def test_a_tokenizer_that_reads_nothing_stops_nobody() -> None:
    """Rows for it wait in order, while aborts are still obeyed."""
    company = Company(config(), capacity=2000)
    async with playing(company):
        rids = [company.submit(prompt(4, first=n), max_tokens=150) for n in range(4)]
        await company.until(lambda: company.ledger.finish(rids[0]) is not Finish.NONE)
        late = company.submit(prompt(6), max_tokens=200)
        company.outbox.send_nowait("scheduler.0", Abort(late))
        await company.until(lambda: company.ledger.finish(late) is Finish.ABORT)
        await company.finished(*rids)
        company.verify(*rids)
