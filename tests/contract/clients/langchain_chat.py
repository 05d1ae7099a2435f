"""LangChain's ChatOpenAI: invoke, stream, batch, async, the Responses API and a chain; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

ASK = "What is 12 + 30?"


def main(url: str, model: str) -> dict[str, Any]:
    """Every way that a LangChain program calls a chat model."""
    server: dict[str, Any] = {"model": model, "base_url": url, "api_key": "none", "temperature": 0}
    chat = ChatOpenAI(max_retries=0, **server)
    whole = chat.invoke(ASK)
    pieces = list(chat.stream(ASK, stream_usage=True))
    total = pieces[0]
    for piece in pieces[1:]:
        total += piece
    chain = ChatPromptTemplate.from_messages([("human", "What is {a} + {b}?")]) | chat | StrOutputParser()
    responses = ChatOpenAI(max_retries=0, use_responses_api=True, **server)
    return {
        "whole": whole.text,
        "tokens": whole.usage_metadata["total_tokens"],
        "streamed": total.text,
        "streamed_tokens": total.usage_metadata["total_tokens"],
        "pieces": len(pieces),
        "chain": chain.invoke({"a": 20, "b": 3}),
        "batch": [answer.text for answer in chat.batch([ASK, "What is 20 + 3?"])],
        "async": asyncio.run(chat.ainvoke(ASK)).text,
        "response": responses.invoke(ASK).text,
        "response_streamed": "".join(piece.text for piece in responses.stream(ASK)),
    }


print(json.dumps(main(*sys.argv[1:3])))
