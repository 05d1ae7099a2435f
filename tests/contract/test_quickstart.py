"""The README's clients, unmodified, against the demo model: openai over WebSocket and HTTP, and curl."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests import processor
from tests.faults.stage import until
from tests.serving import Company, serving


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with serving("--dtype", "float32") as running:
        yield running


@pytest.fixture
def client(company: Company) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=company.url, api_key="none", max_retries=0) as made:
        yield made


def test_a_chat_streams_over_http(company: Company, client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=company.model,
            messages=[{"role": "user", "content": "What is 12 + 30?"}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "42" in text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0


# The client calls a form of websockets' connect() that websockets 17 deprecates; it works.
@pytest.mark.filterwarnings("ignore:connect\\(\\) must be used as a context manager:DeprecationWarning")
def test_a_response_streams_over_the_websocket(company: Company, client: openai.OpenAI) -> None:
    with client.responses.connect() as connection:
        connection.response.create(model=company.model, input="What is 20 + 3?", temperature=0)
        events = []
        for event in connection:
            events.append(event)
            if event.type in ("response.completed", "response.failed", "error"):
                break
    assert events[-1].type == "response.completed"
    assert "23" in "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_curl(company: Company) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    body = json.dumps(
        {"model": company.model, "temperature": 0, "messages": [{"role": "user", "content": "3 + 4 = ?"}]}
    )
    done = subprocess.run(
        [curl, "-sS", f"{company.url}/chat/completions", "-H", "content-type: application/json", "-d", body],
        capture_output=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert "7" in answer["choices"][0]["message"]["content"]


def test_the_same_seed_gives_the_same_text_whatever_else_runs(
    company: Company, client: openai.OpenAI
) -> None:
    def ask(seed: int) -> str:
        answer = client.completions.create(
            model=company.model, prompt="def add(", max_tokens=24, seed=seed, temperature=0.9
        )
        return answer.choices[0].text

    alone = [ask(seed) for seed in range(4)]
    with ThreadPoolExecutor(32) as crowd:
        together = list(crowd.map(ask, list(range(4)) * 8))
    assert together == alone * 8
    assert len(set(alone)) > 1


def test_n_choices_and_usage(company: Company, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=company.model,
        messages=[{"role": "user", "content": "Tell me a story"}],
        n=3,
        seed=5,
        max_tokens=20,
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_256_streams_all_finish_and_every_page_comes_back(company: Company, client: openai.OpenAI) -> None:
    def ask(index: int) -> int:
        stream = client.completions.create(
            model=company.model,
            prompt=f"# example {index}\ndef f{index}(x):\n",
            max_tokens=16,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
            stream_options={"include_usage": True},
        )
        return [chunk.usage.completion_tokens for chunk in stream if chunk.usage][-1]

    with ThreadPoolExecutor(256) as crowd:
        assert list(crowd.map(ask, range(256))) == [16] * 256

    def is_at_rest() -> bool:
        scheduler = company.actor("scheduler.0")
        pages = scheduler["pages_free"] + scheduler["pages_cached"]
        busy = scheduler["running"] or scheduler["waiting"] or scheduler["pages_owned"]
        return not busy and pages == scheduler["pages_total"] > 0

    until(is_at_rest, "every page is back")


def test_an_idle_company_costs_next_to_nothing(company: Company) -> None:
    share = processor.least_share([*company.pids().values(), company.process.pid], 0.05)
    assert share < 0.05, f"{share:.1%} of a core while idle"
