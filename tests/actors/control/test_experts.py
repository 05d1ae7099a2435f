"""Counting experts in a company of two replicas, over the death of an executor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpu.hash_executor import EXPERTS
from tests.serving import Company, serving
from tests.streams import Generation, ask

PROMPT = list(range(3, 43))


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--executor", "hash", "--dp", "2", "--no-radix") as running:
        yield running


def _rows(company: Company) -> list[int]:
    """Of the next answer, each expert's; nothing else is computed meanwhile."""
    ids = Generation(company, PROMPT, 20).done().ids
    tokens = [*PROMPT, *ids[:-1]]
    return [sum(token % EXPERTS == expert for token in tokens) for expert in range(EXPERTS)]


def test_all_replicas_are_counted(company: Company) -> None:
    ask(company, "experts.start")
    for _ in range(2):
        wanted = [sum(rows) for rows in zip(*(_rows(company) for _ in range(3)), strict=True)]
        told = ask(company, "experts.dump")
        assert told == {"recording": True, "complete": True, "layers": [{"layer": 0, "rows": wanted}]}
    wanted = _rows(company)
    assert ask(company, "experts.stop") == {"recording": False, "complete": True}
    _rows(company)
    assert ask(company, "experts.dump")["layers"][0]["rows"] == wanted


def test_who_comes_back_counts_on_and_what_is_lost_is_told(company: Company) -> None:
    ask(company, "experts.start")
    _rows(company)
    for executor in ("executor.0", "executor.1"):
        company.kill(executor)
    wanted = _rows(company)
    told = ask(company, "experts.dump")
    (layer,) = told["layers"]
    assert not told["complete"]
    assert all(row >= least for row, least in zip(layer["rows"], wanted, strict=True)), "some were run twice"
    wanted = _rows(company)
    assert ask(company, "experts.dump") == {
        "recording": True,
        "complete": True,
        "layers": [{"layer": 0, "rows": wanted}],
    }
    ask(company, "experts.stop")
