"""Chat over real sockets, with raw HTTP and with the unmodified openai client."""

from __future__ import annotations

import openai
import trio

from tests.actors.frontend.harness import ask, chat_body, world

CHAT = "/v1/chat/completions"


async def test_answers_whole() -> None:
    async with world() as w:
        answer = await ask(w.port, CHAT, chat_body())
        assert answer.status == 200
        assert answer.headers["x-request-id"].startswith("req_")
        document = answer.json
        assert document["choices"] == [
            {
                "index": 0,
                "message": {"content": "one two three", "role": "assistant", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ]
        assert document["usage"] == {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        await w.all_free()


async def test_openai_client_streams() -> None:
    def talk(url: str) -> list[openai.types.chat.ChatCompletionChunk]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "one two three"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            return list(stream)

    async with world() as w:
        chunks = await trio.to_thread.run_sync(talk, w.url)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 10
        await w.all_free()


async def test_hanging_up_aborts() -> None:
    async with world() as w:
        raw, generate = await w.begin(CHAT, chat_body())
        await raw.aclose()
        await w.engine.until(lambda: list(generate.rids) == w.engine.aborted)
        await w.all_free()
