"""litellm: chat whole, streamed and asynchronous, completions, and its view of our errors; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

ASK = [{"role": "user", "content": "What is 12 + 30?"}]


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
    }


print(json.dumps(main(*sys.argv[1:3])))
