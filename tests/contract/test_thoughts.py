"""Thoughts with unmodified clients: Responses over HTTP and WebSocket, and Anthropic's messages.

The demo model never learned to end a thought; under a template that begins one, its answers are thoughts.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.serving import Company, serving
from tools.actorctl.serve import DEMO_MODEL

ASKED = "What is 12 + 30?"
FIELDS: dict[str, Any] = {"max_output_tokens": 8, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    model = tmp_path_factory.mktemp("thinker") / "thinker"
    shutil.copytree(DEMO_MODEL, model)
    _begin_thoughts(model)
    with serving("--dtype", "float32", "--reasoning-parser", "think", model=str(model)) as running:
        yield running


def _begin_thoughts(model: pathlib.Path) -> None:
    """A template whose generation prompt opens a thought, and which shows earlier thoughts."""
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
        "{% if not (loop.last and m.role == 'assistant') %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )


@pytest.fixture(scope="module")
def client(company: Company) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=company.url, api_key="none", max_retries=0, timeout=110) as made:
        yield made


@pytest.fixture(scope="module")
def claude(company: Company) -> Iterator[anthropic.Anthropic]:
    root = company.url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=root, api_key="none", max_retries=0, timeout=110) as made:
        yield made


def thought_of(events: list[Any]) -> Any:
    """The one item, a thought, of a response's events, which are whole."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[2:4] == ["response.output_item.added", "response.content_part.added"]
    assert kinds[-4:] == [
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    response = events[-1].response
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens_details.reasoning_tokens == response.usage.output_tokens == 8
    (item,) = response.output
    assert item.type == "reasoning" and item.content[0].text == "".join(deltas) == events[-4].text != ""
    return item


# The client calls a form of websockets' connect() that websockets 17 deprecates; it works.
@pytest.mark.filterwarnings("ignore:connect\\(\\) must be used as a context manager:DeprecationWarning")
def test_a_thought_over_http_and_over_the_websocket(client: openai.OpenAI, company: Company) -> None:
    events = list(client.responses.create(model=company.model, input=ASKED, stream=True, **FIELDS))
    item = thought_of(events)
    assert item.encrypted_content is None and item.summary == []
    with client.responses.connect() as connection:
        connection.send(  # type: ignore[arg-type]
            {
                "type": "response.create",
                "model": company.model,
                "input": ASKED,
                "reasoning": {"effort": "low", "summary": "auto"},
                "include": ["reasoning.encrypted_content"],
                "max_output_tokens": 8,
                "temperature": 0,
            }
        )
        seen = []
        for event in connection:
            seen.append(event)
            if event.type == "response.incomplete":
                break
    again = thought_of(seen)
    assert again.content[0].text == item.content[0].text and again.encrypted_content
    assert seen[-1].response.reasoning.effort == "low"
    with pytest.raises(openai.BadRequestError, match=r"reasoning\.summary"):
        client.responses.create(model=company.model, input=ASKED, reasoning={"summary": "long"}, **FIELDS)  # type: ignore[typeddict-item]


def test_a_thought_goes_back_as_it_came(client: openai.OpenAI, company: Company) -> None:
    """In the clear, sealed, or kept by the server: the same prompt; and one of elsewhere is no part."""
    first = client.responses.create(
        model=company.model, input=ASKED, include=["reasoning.encrypted_content"], **FIELDS
    )
    (item,) = first.output
    assert item.type == "reasoning"
    said: list[Any] = [{"role": "assistant", "content": "42."}, {"role": "user", "content": "Why?"}]

    def tokens(*thought: dict[str, Any]) -> int:
        given: Any = [{"role": "user", "content": ASKED}, *thought, *said]
        answer = client.responses.create(model=company.model, input=given, **FIELDS)
        assert answer.usage is not None
        return answer.usage.input_tokens

    whole = item.model_dump(exclude_none=True)
    sealed = {"type": "reasoning", "id": item.id, "summary": [], "encrypted_content": item.encrypted_content}
    without = tokens()
    assert tokens(whole) == tokens(sealed) == tokens({**whole, "encrypted_content": "x"}) > without
    assert tokens({**sealed, "encrypted_content": "gAAAAB"}) == without
    assert tokens({**sealed, "encrypted_content": "troupe1.%%"}) == without
    listed = client.responses.input_items.list(
        client.responses.create(
            model=company.model, input=[{"role": "user", "content": ASKED}, whole, *said], **FIELDS
        ).id,
        order="asc",
    )
    assert [kept.type for kept in listed] == ["message", "reasoning", "message", "message"]


def test_thinking_in_anthropics_messages(claude: anthropic.Anthropic, company: Company) -> None:
    fields: Any = {
        "model": company.model,
        "max_tokens": 8,
        "messages": [{"role": "user", "content": ASKED}],
        "extra_body": {"temperature": 0},
    }
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    shown = claude.messages.create(**fields, thinking=thinking)
    (block,) = shown.content
    assert block.type == "thinking" and block.thinking and shown.stop_reason == "max_tokens"
    with claude.messages.stream(**fields, thinking=thinking) as stream:
        deltas = [event.thinking for event in stream if event.type == "thinking"]
        final = stream.get_final_message()
    assert "".join(deltas) == block.thinking and final.content[0].to_dict() == block.to_dict()
    hidden = claude.messages.create(**fields)
    assert [part.to_dict() for part in hidden.content] == [{"type": "text", "text": ""}]
    turns: list[Any] = [*fields["messages"], {"role": "assistant", "content": [block.to_dict()]}]
    turns[1]["content"].append({"type": "text", "text": "42."})
    more: Any = [*turns, {"role": "user", "content": "Why?"}]
    counted = claude.messages.count_tokens(model=company.model, messages=more)
    del turns[1]["content"][0]
    assert (
        counted.input_tokens > claude.messages.count_tokens(model=company.model, messages=more).input_tokens
    )
    with pytest.raises(anthropic.BadRequestError, match=r"thinking\.type"):
        claude.messages.create(**fields, thinking={"type": "much"})  # type: ignore[typeddict-item]
