"""The balancer actor in front of real schedulers."""

from __future__ import annotations

import pytest

from protocols.board import Column
from protocols.messages import Abort, StopHere
from protocols.request import Finish
from tests.actors.company_in_memory import Company, config, playing, prompt


def served(company: Company) -> list[int]:
    """Requests that each replica has taken."""
    return [
        company.contexts[name].vitals[Column.REQUESTS_TOTAL]
        for name in company.names
        if name.startswith("scheduler")
    ]


async def test_requests_spread_over_the_replicas_and_come_back_exactly() -> None:
    company = Company(config(dp=3))
    async with playing(company):
        rids = [company.submit(prompt(6, first=n), max_tokens=10) for n in range(12)]
        await company.finished(*rids)
        company.verify(*rids)
        assert served(company) == [4, 4, 4]
        assert {company.ledger.assignment(rid) for rid in rids} == {
            (replica, number) for replica in range(3) for number in range(1, 5)
        }
        lasts = [company.contexts[f"scheduler.{r}"].vitals[Column.LAST_DISPATCH] for r in range(3)]
        assert lasts == [4, 4, 4]


async def test_a_replica_without_an_executor_gets_nothing_new() -> None:
    company = Company(config(dp=2))
    async with playing(company):
        await company.kill("executor.0")
        rids = [company.submit(prompt(6, first=n)) for n in range(6)]
        await company.finished(*rids)
        company.verify(*rids)
        assert served(company) == [0, 6]


async def test_aborts_and_stops_follow_their_request() -> None:
    company = Company(config(dp=2, step_ms=2.0))
    async with playing(company):
        aborted, stopped = (company.submit(prompt(6, first=n), max_tokens=200) for n in range(2))
        await company.receive()
        company.outbox.send_nowait("balancer", Abort(aborted), StopHere(stopped, 1))
        await company.until(lambda: company.ledger.finish(stopped) is not Finish.NONE)
        await company.until(lambda: company.ledger.finish(aborted) is not Finish.NONE)
        assert company.ledger.finish(aborted) is Finish.ABORT
        assert company.ledger.finish(stopped) is Finish.STOP


async def test_an_abort_that_overtakes_its_submit_catches_it() -> None:
    company = Company(config(dp=2, step_ms=2.0))
    async with playing(company):
        submit = company.store(prompt(6), max_tokens=200)
        company.outbox.send_nowait("balancer", Abort(submit.rid), submit)
        await company.until(lambda: company.ledger.finish(submit.rid) is Finish.ABORT)


async def test_mail_for_requests_that_are_gone_is_dropped() -> None:
    company = Company(config(dp=2))
    async with playing(company):
        submit = company.store(prompt(6))
        company.ledger.free(submit.rid)
        company.outbox.send_nowait("balancer", submit, Abort(submit.rid), StopHere(submit.rid, 1))
        other = company.submit(prompt(5))
        await company.finished(other)
        assert sum(served(company)) == 1


@pytest.mark.parametrize("victim", ["balancer", "scheduler.1", "executor.0"])
@pytest.mark.parametrize("receipts", [0, 1, 4])
async def test_after_a_death_everything_comes_exactly_once(victim: str, receipts: int) -> None:
    company = Company(config(dp=2))
    async with playing(company) as nursery:
        rids = [company.submit(prompt(n + 3, first=n), max_tokens=20) for n in range(8)]
        for _ in range(receipts):
            await company.receive()
        await company.kill(victim)
        rids += [company.submit(prompt(n + 3, first=50 + n), max_tokens=20) for n in range(4)]
        await company.start(nursery, victim)
        await company.finished(*rids)
        company.verify(*rids)


async def test_what_a_balancer_had_in_its_hands_is_sent_again() -> None:
    """One request read but not assigned, one assigned but not sent, one assigned to a number that the
    scheduler has not seen: none is lost, and new numbers do not collide."""
    company = Company(config(dp=2))
    async with playing(company, start=False) as nursery:
        unassigned, assigned = company.store(prompt(5)), company.store(prompt(6, first=9))
        company.ledger.assign(assigned.rid, 1, 7)
        for name in ("executor.0", "executor.1", "scheduler.0", "scheduler.1", "balancer"):
            await company.start(nursery, name)
        await company.finished(unassigned.rid, assigned.rid)
        company.verify(unassigned.rid, assigned.rid)
        assert sum(served(company)) == 2
        assert company.ledger.assignment(assigned.rid) == (1, 7)
        rids = [company.submit(prompt(6, first=20 + n)) for n in range(4)]
        await company.finished(*rids)
        numbers = [number for r, number in map(company.ledger.assignment, rids) if r == 1]  # type: ignore[misc]
        assert min(numbers) == 8
