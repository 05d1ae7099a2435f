"""SIGKILL of executor, scheduler and tokenizer amid answers that have a shape, calls or thoughts."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.faults.stage import until
from tests.serving import Company, serving
from tools.actorctl.serve import DEMO_MODEL

NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "integer"}, "minItems": 16, "maxItems": 16}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "numbers": NUMBERS},
    "required": ["name", "numbers"],
    "additionalProperties": False,
}
END = 1
THINKING: dict[str, Any] = {
    "chat_template_kwargs": {"enable_thinking": True},
    "logit_bias": {str(END): 15.0},
    "seed": 11,
}
TOOL: Any = {"type": "function", "function": {"name": "store", "parameters": SCHEMA}}
FORMAT: Any = {"type": "json_schema", "name": "s", "schema": SCHEMA}
KILLED = {20: "executor.0", 90: "scheduler.0", 160: "tokenizer.0"}
"""Chunks that all streams together have shown -> the actor that dies then."""

Told = Callable[[], None]


@functools.cache
def no_thought() -> dict[str, float]:
    """A bias that keeps the demo model, which never learned to end a thought, from beginning one."""
    vocabulary = json.loads((DEMO_MODEL / "tokenizer.json").read_text())["model"]["vocab"]
    return {str(token): -100.0 for text, token in vocabulary.items() if "<think>".startswith(text)}


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    model = tmp_path_factory.mktemp("thinker") / "thinker"
    _thinker(model)
    with serving("--dtype", "float32", "--reasoning-parser", "think", model=str(model)) as running:
        yield running


def _thinker(model: pathlib.Path) -> None:
    """The demo model with a template that begins a thought where one is wished for, and a token, END, that
    ends it: one that it has no other use for, so a bias says how soon."""
    model.mkdir()
    for file in DEMO_MODEL.iterdir():
        if file.name != "tokenizer.json":
            (model / file.name).symlink_to(file)
    tokenizer = json.loads((DEMO_MODEL / "tokenizer.json").read_text().replace("<|pad|>", "</think>"))
    tokenizer["added_tokens"][END]["special"] = False
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = json.loads((DEMO_MODEL / "tokenizer_config.json").read_text())["chat_template"]
    begin = "{% if add_generation_prompt and enable_thinking %}<think>\n{% endif %}"
    (model / "chat_template.jinja").write_text(template + begin)


def _chat(client: openai.OpenAI, model: str, told: Told, **fields: Any) -> tuple[str, ...]:
    """Thought, text and arguments of a streamed chat, and how it ended."""
    fields = {"messages": [{"role": "user", "content": "Tell me"}], "max_tokens": 700, **fields}
    thought = text = arguments = finish = ""
    usage: Any = None
    for chunk in client.chat.completions.create(
        model=model, stream=True, stream_options={"include_usage": True}, **fields
    ):
        told()
        usage = chunk.usage or usage
        for choice in chunk.choices:
            delta = choice.delta
            thought += getattr(delta, "reasoning_content", None) or ""
            text += delta.content or ""
            arguments += "".join(call.function.arguments for call in delta.tool_calls or ())
            finish = choice.finish_reason or finish
    details = usage.completion_tokens_details
    counts = str(usage.completion_tokens), str(details and details.reasoning_tokens)
    return thought, text, arguments, finish, *counts


def _response(client: openai.OpenAI, model: str, told: Told) -> tuple[str, ...]:
    """Kinds and texts of a response's events."""
    seen = []
    with client.responses.create(
        model=model,
        input="Tell me",
        text={"format": FORMAT},
        max_output_tokens=700,
        stream=True,
        temperature=0.7,
        extra_body={"seed": 9, "logit_bias": no_thought()},
    ) as stream:
        for event in stream:
            told()
            seen.append(f"{event.sequence_number} {event.type} {getattr(event, 'delta', '')}")
    return tuple(seen)


def _thoughtful(client: openai.OpenAI, model: str, told: Told) -> tuple[str, ...]:
    """The same of a response that thinks first."""
    fields: Any = {
        "input": "Tell me",
        "text": {"format": FORMAT},
        "max_output_tokens": 700,
        "temperature": 0.8,
    }
    seen = []
    with client.responses.create(model=model, stream=True, extra_body=THINKING, **fields) as stream:
        for event in stream:
            told()
            seen.append(f"{event.sequence_number} {event.type} {getattr(event, 'delta', '')}")
    return tuple(seen)


def _thoughtful_socket(client: openai.OpenAI, model: str, told: Told) -> tuple[str, ...]:
    """And over a WebSocket."""
    create: Any = {"type": "response.create", "model": model, "input": "Tell me", "text": {"format": FORMAT}}
    seen = []
    with client.responses.connect() as connection:
        connection.send({**create, "max_output_tokens": 700, "temperature": 0.8, **THINKING})
        for event in connection:
            told()
            seen.append(f"{event.sequence_number} {event.type} {getattr(event, 'delta', '')}")
            if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
                return tuple(seen)
    raise AssertionError(f"the socket ended amid {seen[-1:]}")


def _every(client: openai.OpenAI, model: str) -> list[Callable[[Told], tuple[str, ...]]]:
    shape: dict[str, Any] = {"json_schema": {"name": "s", "schema": SCHEMA}, "type": "json_schema"}
    begun: list[Any] = [{"role": "user", "content": "Tell me"}, {"role": "assistant", "content": "<think>"}]
    return [
        lambda told: _chat(
            client, model, told, seed=1, response_format=shape, temperature=0.8, logit_bias=no_thought()
        ),
        lambda told: _chat(
            client,
            model,
            told,
            seed=2,
            tools=[TOOL],
            tool_choice="required",
            parallel_tool_calls=False,
            logit_bias=no_thought(),
        ),
        lambda told: _chat(
            client, model, told, seed=3, extra_body={"regex": "([a-z]{2,9} ){25}"}, logit_bias=no_thought()
        ),
        lambda told: _chat(
            client,
            model,
            told,
            seed=4,
            messages=begun,
            max_tokens=80,
            extra_body={"continue_final_message": True},
        ),
        lambda told: _response(client, model, told),
        lambda told: _chat(client, model, told, response_format=shape, temperature=0.8, extra_body=THINKING),
        lambda told: _thoughtful(client, model, told),
        lambda told: _thoughtful_socket(client, model, told),
    ]


# The client calls a form of websockets' connect() that websockets 17 deprecates; it works.
@pytest.mark.filterwarnings("ignore:connect\\(\\) must be used as a context manager:DeprecationWarning")
@pytest.mark.timeout(300)
def test_shapes_calls_and_thoughts_survive_everybody(company: Company) -> None:
    with (
        openai.OpenAI(base_url=company.url, api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(8) as crowd,
    ):
        every = _every(client, company.model)
        expected = [ask(lambda: None) for ask in every]
        assert len(json.loads(expected[0][1])["numbers"]) == 16
        assert len(json.loads(expected[1][2])["numbers"]) == 16 and expected[1][3] == "tool_calls"
        assert expected[3][0] and not expected[3][1] and expected[3][4] == expected[3][5]
        thought, shaped, _, finish, *_ = expected[5]
        assert thought and len(json.loads(shaped)["numbers"]) == 16 and finish == "stop"
        for events in expected[6:]:
            assert events == expected[6] and events[-1].split()[1] == "response.completed"
            kinds = [event.split()[1] for event in events]
            assert kinds.index("response.output_text.delta") > kinds.index("response.reasoning_text.done")
        pids, chunks, lock = company.pids(), 0, threading.Lock()

        def told() -> None:
            nonlocal chunks
            with lock:
                chunks += 1
                if chunks in KILLED:
                    os.kill(pids[KILLED[chunks]], signal.SIGKILL)

        answers = [crowd.submit(ask, told) for ask in every]
        assert [answer.result(200) for answer in answers] == expected
    for name in KILLED.values():
        until(lambda name=name: company.actor(name)["restarts"] == 1, f"{name} to be back")  # type: ignore[misc]
