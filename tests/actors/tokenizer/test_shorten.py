"""Which turns a long conversation loses."""

from __future__ import annotations

import json

import msgspec
import pytest

from actors.tokenizer.shorten import latest, shorter_forms
from protocols.request import ChatPrompt

TURNS = [
    ("system", "s"),
    *((role, f"{role}{i}") for i in range(6) for role in ("user", "assistant")),
    ("user", "last"),
]


def prompt_of(turns: list[tuple[str, str]]) -> ChatPrompt:
    return ChatPrompt(msgspec.json.encode([{"role": role, "content": text} for role, text in turns]))


def texts(prompt: ChatPrompt) -> list[str]:
    return [message["content"] for message in json.loads(prompt.messages)]


async def render(prompt: ChatPrompt) -> str:
    return " ".join(texts(prompt))


def test_shorter_forms_begin_with_a_user_and_keep_the_system() -> None:
    forms = [texts(form) for form in shorter_forms(prompt_of(TURNS))]
    assert len(forms) == 6
    assert all(form[0] == "s" and form[1].startswith(("user", "last")) for form in forms)
    assert forms[-1] == ["s", "last"]
    assert shorter_forms(prompt_of([("system", "s"), ("user", "u")])) == []


@pytest.mark.parametrize("room", range(0, 160, 7))
async def test_the_longest_form_that_fits_is_taken(room: int) -> None:
    async def fits(text: str) -> bool:
        return len(text) <= room

    prompt = prompt_of(TURNS)
    found = await latest(prompt, render, fits)
    forms = [await render(form) for form in (prompt, *shorter_forms(prompt))]
    fitting = [form for form in forms if len(form) <= room]
    assert found == (fitting[0] if fitting else forms[-1])
