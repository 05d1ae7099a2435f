"""litellm: chat in every way, completions, the Responses API, and its view of our errors; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

ASK = [{"role": "user", "content": "What is 12 + 30?"}]


def responses(server: dict[str, Any]) -> dict[str, Any]:
    """The Responses API: whole, streamed, asynchronous, continued, found again, refused and deleted."""
    found: dict[str, Any] = {**server, "custom_llm_provider": "openai"}
    del found["model"]
    asked: dict[str, Any] = {"input": ASK[0]["content"], "temperature": 0, **server}
    whole = litellm.responses(**asked)
    events = list(litellm.responses(stream=True, **asked))
    later = asyncio.run(litellm.aresponses(**asked))
    more = litellm.responses(**{**asked, "input": "What is 20 + 3?", "previous_response_id": whole.id})
    again = litellm.get_responses(response_id=whole.id, **found)
    items = litellm.list_input_items(response_id=whole.id, **found)
    deleted = litellm.delete_responses(response_id=whole.id, **found)
    try:
        litellm.get_responses(response_id=whole.id, **found)
        gone = ""
    except litellm.BadRequestError as error:
        gone = str(error)
    return {
        "whole": text_of(whole),
        "events": [str(getattr(event.type, "value", event.type)) for event in events],
        "streamed": "".join(getattr(event, "delta", "") for event in events),
        "async": text_of(later),
        "continued": text_of(more),
        "tokens": more.usage.total_tokens,
        "again": text_of(again),
        "items": [item["role"] for item in items["data"]],
        "deleted": deleted.deleted,
        "gone": gone,
    }


def text_of(response: Any) -> str:
    """The answer of a response."""
    return str(response.output[0].content[0].text)


def main(url: str, model: str) -> dict[str, Any]:
    """Every way that litellm has to speak to an OpenAI-compatible server."""
    server: dict[str, Any] = {
        "model": f"openai/{model}",
        "api_base": url,
        "api_key": "none",
        "max_retries": 0,
    }
    whole = litellm.completion(messages=ASK, temperature=0, **server)
    chunks = list(
        litellm.completion(
            messages=ASK, temperature=0, stream=True, stream_options={"include_usage": True}, **server
        )
    )
    later = asyncio.run(litellm.acompletion(messages=ASK, temperature=0, **server))
    text = litellm.text_completion(prompt="def add(", max_tokens=8, temperature=0, **server)
    try:
        litellm.completion(messages=ASK, temperature=-1, **server)
        refusal = ""
    except litellm.BadRequestError as error:
        refusal = str(error)
    return {
        "whole": whole.choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "usage": [chunk.usage.total_tokens for chunk in chunks if getattr(chunk, "usage", None)],
        "async": later.choices[0].message.content,
        "text": text.choices[0].text,
        "refusal": refusal,
        "responses": responses(server),
    }


print(json.dumps(main(*sys.argv[1:3])))
