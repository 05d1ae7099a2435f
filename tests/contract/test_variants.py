"""The same tokens whatever the company looks like: depth, cache, replicas, tight memory, small chunks."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.faults.stage import until
from tests.serving import Company, actorctl, serving

PROMPTS = [f"# part {index}\n" + "def add(a, b):\n    return a + b\n" * (index % 5) for index in range(12)]
GUESSING = ("--speculate", "ngram", "--speculate-min", "1")
VARIANTS = {
    "two replicas, depth 1": ("--dp", "2", "--balance", "minimum_tokens", "--depth", "1"),
    "two of each, no radix": (
        *("--dp", "2", "--balance", "round_robin"),
        *("--frontends", "2", "--tokenizers", "2", "--no-radix"),
    ),
    "small chunks, small pages": ("--chunk-size", "24", "--page-size", "4", "--max-running", "16"),
    "pages run out": ("--pages", "24", "--max-running", "12"),
    "guesses in a tight pool": (
        *(*GUESSING, "--speculate-rows", "72"),
        *("--pages", "64", "--page-size", "4", "--max-running", "12"),
    ),
}


def _ask(client: openai.OpenAI, model: str, index: int, **more: Any) -> str:
    shape: dict[str, Any] = (
        {"temperature": 0} if index % 2 else {"temperature": 0.8, "top_p": 0.95, "seed": index}
    )
    answer = client.completions.create(
        model=model, prompt=PROMPTS[index], max_tokens=40, extra_body={"ignore_eos": True}, **shape, **more
    )
    return answer.choices[0].text


def _crowd(company: Company) -> list[str]:
    with (
        openai.OpenAI(base_url=company.url, api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(len(PROMPTS)) as crowd,
    ):
        return list(crowd.map(lambda index: _ask(client, company.model, index), range(len(PROMPTS))))


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """Each prompt answered alone, in the plainest company."""
    with (
        serving("--dtype", "float32", "--depth", "1", "--no-radix") as company,
        openai.OpenAI(base_url=company.url, api_key="none") as client,
    ):
        return [_ask(client, company.model, index) for index in range(len(PROMPTS))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_tokens(variant: str, expected: list[str]) -> None:
    with serving("--dtype", "float32", *VARIANTS[variant]) as company:
        assert _crowd(company) == expected
        again = _crowd(company)
        assert again == expected, "with whatever the prefix cache now holds"
        if "guesses" in variant:
            _has_guessed(company)
        if variant == "pages run out":
            assert company.actor("scheduler.0")["preemptions_total"] > 0
        if "--dp" in VARIANTS[variant]:
            served = [company.actor(f"scheduler.{replica}")["requests_total"] for replica in (0, 1)]
            assert min(served) > 0


def _has_guessed(company: Company) -> None:
    """And sometimes rightly."""
    scheduler = company.actor("scheduler.0")
    assert 0 < scheduler["accepted_total"] <= scheduler["drafted_total"]


@pytest.mark.parametrize(("burst", "least", "most"), [("0", 300, 400), ("1000", 1, 150)])
def test_short_steps_run_several_in_a_row_unless_bursts_are_off(burst: str, least: int, most: int) -> None:
    """Told by the plans that an executor was sent for 300 tokens."""
    with (
        serving("--executor", "hash", "--burst-ms", burst) as company,
        openai.OpenAI(base_url=company.url, api_key="none", max_retries=0) as client,
    ):
        answer = client.completions.create(
            model=company.model, prompt="on", max_tokens=300, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None and answer.usage.completion_tokens == 300
        ticks = company.actor("executor.0")["loop_tick"] + 2
        until(lambda: company.actor("executor.0")["loop_tick"] >= ticks, "the counters to be shown")
        assert least <= company.actor("executor.0")["messages_in"] <= most


def test_guesses_survive_the_death_of_executor_and_scheduler(expected: list[str]) -> None:
    """Whatever guesses were in the air and in the pages, every stream goes on with the same tokens."""
    with (
        serving("--dtype", "float32", *GUESSING) as company,
        openai.OpenAI(base_url=company.url, api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(len(PROMPTS)) as crowd,
    ):
        assert _crowd(company) == expected
        _has_guessed(company)
        stop = expected[1][len(expected[1]) // 2 :][:3]
        cut = _ask(client, company.model, 1, stop=stop)
        assert cut == expected[1][: expected[1].index(stop)], "tokens behind a stop string are cut off"
        pids = company.pids()
        others = [crowd.submit(_ask, client, company.model, index) for index in range(1, len(PROMPTS))]
        stream = client.completions.create(
            model=company.model,
            prompt=PROMPTS[0],
            max_tokens=40,
            temperature=0.8,
            top_p=0.95,
            seed=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        text = ""
        for count, chunk in enumerate(stream):
            text += chunk.choices[0].text if chunk.choices else ""
            for victim in ("executor.0",) * (count == 1) + ("scheduler.0",) * (count == 3):
                os.kill(pids[victim], signal.SIGKILL)
        assert [text, *(other.result() for other in others)] == expected
        assert [company.actor(name)["restarts"] for name in ("executor.0", "scheduler.0")] == [1, 1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--speculate-min", "5", "--speculate-max", "4"),
            "--speculate-min 5 must not exceed --speculate-max 4",
        ),
        (("--speculate-tokens", "17"), "17 is not in the range 1<=x<=16"),
        (("--speculate", "medusa"), "'medusa' is not one of 'off', 'ngram'"),
    ],
)
def test_guesses_that_cannot_be_are_refused_by_name(options: tuple[str, ...], sentence: str) -> None:
    done = actorctl("serve", *options)
    assert done.returncode == 2 and sentence in done.stderr
