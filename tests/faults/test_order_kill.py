"""SIGKILL of an actor while it carries out an order: what was answered is so, and what was decided holds."""

from __future__ import annotations

import functools
import itertools

from runtime.failpoints import VARIABLE
from tests.faults.stage import until
from tests.serving import Company, serving
from tests.streams import Stream, ask, paused_amid

CASES = tuple(enumerate(itertools.product(("order.before", "order.after"), ("in_place", "retract"))))
"""By number: where the scheduler dies, and how generation is to pause."""
RULES = ";".join(
    f"scheduler.0/{point}=kill@{2 if number else 1}#{2 * number + 1}" for number, (point, _) in CASES
)
"""Each case takes two incarnations, and ends with an order to the third."""
TOKENS = 400


def test_a_scheduler_that_dies_of_the_order_to_pause_comes_back_paused() -> None:
    with serving("--executor", "hash", "--step-ms", "3", environment={VARIABLE: RULES}) as company:
        truth = Stream(company, tokens=TOKENS).done()
        assert truth[1] == "length"
        for number, (_, mode) in CASES:
            stream = paused_amid(company, mode, TOKENS)
            assert company.actor("scheduler.0")["incarnation"] == 2 * number + 2
            _stands(company)
            company.kill("scheduler.0")
            company.kill("executor.0")
            _await(company, scheduler=2 * number + 3, executor=number + 2)
            _stands(company)
            ask(company, "engine.resume")
            assert stream.done() == truth


def _await(company: Company, **incarnations: int) -> None:
    """Incarnations of these numbers, and that everybody is back."""
    for kind, number in incarnations.items():
        there = functools.partial(_is_there, company, f"{kind}.0", number)
        until(there, f"incarnation {number} of the {kind}")
    until(lambda: company.status()["state"] == "ready", "everybody is back")


def _is_there(company: Company, name: str, incarnation: int) -> bool:
    return bool(company.actor(name)["incarnation"] == incarnation)


def _stands(company: Company) -> None:
    """Nothing is launched, however long one looks."""
    steps = company.actor("executor.0")["steps_total"]
    for _ in range(3):
        assert company.actor("executor.0")["steps_total"] == steps
    assert company.status()["standing"]["paused"]
