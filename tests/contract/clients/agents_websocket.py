"""openai-agents over its WebSocket model: two turns with a session, the second streamed; prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from agents import Agent, ModelSettings, SQLiteSession, responses_websocket_session


async def main(url: str, model: str) -> dict[str, object]:
    """Ask twice in one conversation, over one socket."""
    agent = Agent(
        name="Clerk",
        instructions="Answer briefly.",
        model=model,
        model_settings=ModelSettings(temperature=0, max_tokens=40),
    )
    memory = SQLiteSession("contract")
    async with responses_websocket_session(api_key="none", base_url=url) as socket:
        first = await socket.run(agent, "What is 12 + 30?", session=memory)
        streamed = socket.run_streamed(agent, "What is 20 + 3?", session=memory)
        kinds = [event.data.type async for event in streamed.stream_events() if hasattr(event, "data")]
    return {
        "first": first.final_output,
        "second": streamed.final_output,
        "kinds": sorted(set(kinds)),
        "remembered": len(await memory.get_items()),
        "tokens": first.context_wrapper.usage.total_tokens,
    }


print(json.dumps(asyncio.run(main(*sys.argv[1:3]))))
