"""The openai client over HTTP, sync and async: chat, completions, responses, errors; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import openai

ASK = "What is 12 + 30?"
MESSAGES: Any = [{"role": "user", "content": ASK}]


def chat(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Chat and completions, whole, streamed and by the client's stream helper."""
    whole = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0)
    chunks = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, stream=True)
    with client.chat.completions.stream(model=model, messages=MESSAGES, temperature=0) as stream:
        helped = stream.until_done().get_final_completion()
    text = client.completions.create(model=model, prompt="def add(", max_tokens=8, temperature=0)
    raw = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, max_tokens=1)
    return {
        "models": [card.id for card in client.models.list()],
        "whole": whole.choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "helped": helped.choices[0].message.content,
        "text": text.choices[0].text,
        "request_id": raw.request_id,
        "length": raw.parse().choices[0].finish_reason,
    }


def responses(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Responses: whole, by the stream helper, continued, resumed, in the background, deleted."""
    whole = client.responses.create(model=model, input=ASK, temperature=0)
    next_one = client.responses.create(
        model=model, input="What is 20 + 3?", temperature=0, previous_response_id=whole.id
    )
    with client.responses.stream(model=model, input=ASK, temperature=0) as stream:
        events = list(stream)
        helped = stream.get_final_response()
    rest = client.responses.retrieve(helped.id, stream=True, starting_after=5)
    running = client.responses.create(
        model=model,
        input="Tell me a story",
        background=True,
        max_output_tokens=1500,
        extra_body={"ignore_eos": True},
    )
    cancelled = client.responses.cancel(running.id)
    client.responses.delete(whole.id)
    return {
        "whole": whole.output_text,
        "continued": next_one.output_text,
        "cached": next_one.usage.input_tokens_details.cached_tokens,
        "helped": helped.output_text,
        "numbers": [event.sequence_number for event in events],
        "rest": [event.sequence_number for event in rest],
        "background": running.status,
        "cancelled": cancelled.status,
        "gone": _raises(lambda: client.responses.retrieve(whole.id)),
    }


def errors(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Which of the client's exceptions each mistake becomes, and what it says."""
    return {
        "model": _raises(lambda: client.chat.completions.create(model="nobody", messages=MESSAGES)),
        "range": _raises(lambda: client.chat.completions.create(model=model, messages=MESSAGES, top_p=7)),
        "context": _raises(lambda: client.completions.create(model=model, prompt="a b c d " * 9000)),
        "previous": _raises(
            lambda: client.responses.create(model=model, input="x", previous_response_id="resp_1")
        ),
    }


def _raises(call: Any) -> list[Any]:
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.param]
    return []


async def at_once(url: str, model: str) -> dict[str, Any]:
    """The async client: eight sums at once, and streams of both kinds."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.responses.create(model=model, input=f"What is {n} + 3?", temperature=0)
                for n in range(20, 28)
            )
        )
        chunks = await client.chat.completions.create(
            model=model, messages=MESSAGES, temperature=0, stream=True
        )
        streamed = [chunk.choices[0].delta.content or "" async for chunk in chunks]
        async with client.responses.stream(model=model, input=ASK, temperature=0) as stream:
            helped = await stream.get_final_response()
        rest = await client.responses.retrieve(helped.id, stream=True, starting_after=5)
        numbers = [event.sequence_number async for event in rest]
    return {
        "sums": [answer.output_text for answer in answers],
        "streamed": "".join(streamed),
        "helped": helped.output_text,
        "rest": numbers,
    }


def main(url: str, model: str) -> dict[str, Any]:
    """Everything, by name."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        parts = {part.__name__: part(client, model) for part in (chat, responses, errors)}
    return {**parts, "at_once": asyncio.run(at_once(url, model))}


print(json.dumps(main(*sys.argv[1:3])))
