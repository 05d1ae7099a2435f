"""SIGKILL of executor and scheduler amid answers that nobody watches: their steps run several rounds."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from runtime.failpoints import VARIABLE
from tests.serving import Company, serving
from tests.streams import Stream

TOKENS, CLIENTS = 64, 6
HASH = ("--executor", "hash", "--step-ms", "12", "--burst-ms", "20")
"""A step is one round where somebody watches, and several where nobody does."""
DEATHS = "executor.0/executor.launched=kill@4;scheduler.0/ledger.commit.after=kill@33"
"""Each amid a step of several rounds: before it is told of, and when some of its choices are committed."""


def _fields(number: int) -> dict[str, Any]:
    return {"prompt": f"Number {number} goes on", "temperature": 0.9, "seed": number}


def _whole(company: Company, number: int) -> str:
    fields = {"model": company.model, "max_tokens": TOKENS, "ignore_eos": True, **_fields(number)}
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(f"{company.url}/completions", json.dumps(fields).encode(), headers)
    with urllib.request.urlopen(asked, timeout=240) as answer:
        document = json.load(answer)
    assert document["usage"]["completion_tokens"] == TOKENS
    return str(document["choices"][0]["text"])


def test_answers_that_are_sent_whole_survive_whoever_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, DEATHS)
    with serving(*HASH) as company, ThreadPoolExecutor(CLIENTS) as crowd:

        def whole() -> list[str]:
            return list(crowd.map(lambda number: _whole(company, number), range(CLIENTS)))

        shaken = whole()
        for name in ("executor.0", "scheduler.0"):
            assert company.actor(name)["incarnation"] >= 2, company.stderr()
        streams = [Stream(company, tokens=TOKENS, **_fields(number)) for number in range(CLIENTS)]
        assert [stream.done()[0] for stream in streams] == shaken
        before = company.actor("executor.0")["steps_total"]
        assert whole() == shaken
        assert company.actor("executor.0")["steps_total"] - before < TOKENS
