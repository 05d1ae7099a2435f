"""The openai client over the Responses WebSocket, sync and async, with lanes; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import openai
from openai.lib.responses_websocket import ResponsesWebSocketLimits, ResponsesWebSocketSession

LIMITS = ResponsesWebSocketLimits(
    max_lanes=8, max_events_per_lane=512, max_events=2048, max_bytes_per_lane=1 << 20, max_bytes=1 << 22
)


def chained(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Two turns on one socket, nothing stored: the second continues the first by its id."""
    with client.responses.connect() as connection:
        said, id = [], None
        for question in ("What is 12 + 30?", "What is 20 + 3?"):
            connection.response.create(
                model=model, input=question, temperature=0, store=False, previous_response_id=id
            )
            for event in connection:
                if event.type in ("response.completed", "response.failed", "error"):
                    id = event.response.id
                    said.append(event.response.output_text)
                    break
        return {"said": said, "cached": event.response.usage.input_tokens_details.cached_tokens}


def lanes(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Four sums at once, each on a lane of its own, and a mistake that only its lane hears of."""
    with (
        client.responses.connect() as connection,
        ResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        sums = {f"sum.{n}": session.lane(f"sum.{n}") for n in range(4)}
        for n, lane in enumerate(sums.values()):
            ask = {"model": model, "input": f"What is 2{n} + 3?", "temperature": 0}
            lane.send({"type": "response.create", **ask})
        wrong = session.lane("wrong")
        wrong.send(
            {"type": "response.create", "model": model, "input": "x", "previous_response_id": "resp_1"}
        )
        refusal = wrong.recv(timeout=60)
        return {
            "sums": {name: lane.get_final_response(timeout=60).output_text for name, lane in sums.items()},
            "refusal": [refusal.type, refusal.error.code],
        }


async def at_once(url: str, model: str) -> str:
    """The async client's socket."""
    async with (
        openai.AsyncOpenAI(base_url=url, api_key="none") as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(model=model, input="What is 12 + 30?", temperature=0)
        async for event in connection:
            if event.type == "response.completed":
                return event.response.output_text
    return ""


def main(url: str, model: str) -> dict[str, Any]:
    """Everything, by name."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        parts = {part.__name__: part(client, model) for part in (chained, lanes)}
    return {**parts, "at_once": asyncio.run(at_once(url, model))}


print(json.dumps(main(*sys.argv[1:3])))
