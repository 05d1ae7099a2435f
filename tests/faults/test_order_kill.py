"""SIGKILL of an actor while it carries out an order: what was answered is so, and what was decided holds."""

from __future__ import annotations

import pytest

from runtime.failpoints import VARIABLE
from tests.faults.stage import until
from tests.serving import Company, serving
from tests.streams import Stream, ask, paused_amid


@pytest.mark.parametrize("point", ["order.before", "order.after"])
@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_a_scheduler_that_dies_of_the_order_to_pause_comes_back_paused(
    monkeypatch: pytest.MonkeyPatch, point: str, mode: str
) -> None:
    monkeypatch.setenv(VARIABLE, f"scheduler.0/{point}=kill")
    with serving("--executor", "hash", "--step-ms", "3") as company:
        stream = paused_amid(company, mode)
        assert company.actor("scheduler.0")["incarnation"] == 2
        _stands(company)
        company.kill("scheduler.0")
        company.kill("executor.0")
        until(lambda: company.actor("scheduler.0")["incarnation"] == 3, "another scheduler", 60)
        until(lambda: company.status()["state"] == "ready", "everybody is back", 60)
        _stands(company)
        ask(company, "engine.resume")
        text, finish = stream.done()
        assert finish == "length" and text == Stream(company, tokens=400).done()[0]


def _stands(company: Company) -> None:
    """Nothing is launched, however long one looks."""
    steps = company.actor("executor.0")["steps_total"]
    for _ in range(3):
        assert company.actor("executor.0")["steps_total"] == steps
    assert company.status()["standing"]["paused"]
