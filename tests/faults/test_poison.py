"""A request that kills its executor every time: three deaths at most, one clean error, all others exact."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from runtime import admin
from tests.faults.poisoned import POISON
from tests.faults.stage import until
from tests.patience import PATIENCE
from tests.serving import ROOT

NEIGHBOURS = [[3 + index, 200 + index, 17] for index in range(10)]


@pytest.fixture
def address() -> Iterator[str]:
    name = f"poisoned-{uuid.uuid4().hex[:8]}"
    command = [sys.executable, "-m", "tests.faults.poisoned", name]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        where = admin.address(name)
        until(lambda: _state(where) == "ready", "the company to serve")
        yield where
        process.terminate()
        assert process.wait(PATIENCE) == 0


def _state(address: str) -> str:
    try:
        return str(admin.ask(address, {"verb": "status"})["state"])
    except admin.Unreachable:
        return "unreachable"


def _ask(client: openai.OpenAI, prompt: list[int], tokens: int) -> str:
    answer = client.completions.create(
        model="demo", prompt=prompt, max_tokens=tokens, seed=1, extra_body={"ignore_eos": True}
    )
    return answer.choices[0].text


def test_a_poison_request_dies_alone(address: str) -> None:
    status = admin.ask(address, {"verb": "status"})
    with (
        openai.OpenAI(base_url=status["url"] + "/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(len(NEIGHBOURS) + 1) as crowd,
    ):
        expected = [_ask(client, prompt, 150) for prompt in NEIGHBOURS]
        answers = [crowd.submit(_ask, client, prompt, 150) for prompt in NEIGHBOURS]
        poison = crowd.submit(_ask, client, [5, POISON, 6], 20)
        with pytest.raises(openai.APIStatusError) as refused:
            poison.result(2 * PATIENCE)
        assert [answer.result(2 * PATIENCE) for answer in answers] == expected
    assert 500 <= refused.value.status_code < 600
    assert "Traceback" not in refused.value.message
    actors = {actor["name"]: actor for actor in admin.ask(address, {"verb": "status"})["actors"]}
    assert 1 <= actors["executor.0"]["restarts"] <= 3
    assert all(actor["restarts"] == 0 for name, actor in actors.items() if name != "executor.0")
