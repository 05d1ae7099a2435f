"""Chat requests as their templates see them: the older and the other names of what a turn holds."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from actors.frontend.chat import prompt_of
from protocols.openai.chat import ChatRequest

USER = {"role": "user", "content": "x"}


def given(message: dict[str, Any], **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first message and the arguments of a request's template."""
    body = {"model": "m", "messages": [message, USER], **fields}
    prompt = prompt_of(msgspec.convert(body, ChatRequest))
    return json.loads(prompt.messages)[0], json.loads(prompt.template_kwargs)


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"refusal": "no"}, {"content": "no"}),
        ({"content": "yes", "refusal": "no"}, {"content": "yes"}),
        ({"reasoning": "hm"}, {"content": "", "reasoning_content": "hm"}),
        ({"reasoning": "hm", "reasoning_content": "so"}, {"content": "", "reasoning_content": "so"}),
        ({"reasoning": {"effort": "low"}}, {"content": ""}),
        (
            {"function_call": {"name": "f", "arguments": '{"a": 1}'}},
            {
                "content": "",
                "tool_calls": [
                    {"id": "", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
                ],
            },
        ),
    ],
)
def test_turns_of_the_assistant(more: dict[str, Any], shown: dict[str, Any]) -> None:
    assert given({"role": "assistant", **more})[0] == {"role": "assistant", **shown}


def test_efforts_are_for_the_template() -> None:
    said = {"reasoning_effort": "low", "verbosity": "high"}
    assert given(USER, **said)[1] == said
    assert given(USER, verbosity="low", chat_template_kwargs={"verbosity": "high"})[1] == {
        "verbosity": "high"
    }
