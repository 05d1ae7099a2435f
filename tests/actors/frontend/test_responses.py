"""The Responses API over HTTP: create, stream, resume, background, cancel, delete."""

from __future__ import annotations

import json
from typing import Any

import openai
import trio

from protocols.request import Finish
from tests.actors.frontend.harness import Raw, ask, look, world

PATH = "/v1/responses"


def body(text: Any = "one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": text, **fields}


async def sse(raw: Raw) -> list[Any]:
    """The events of a stream, to its end."""
    await raw.until(b"\r\n\r\n")
    data = (await raw.until(b"0\r\n\r\n")).decode()
    events = []
    for block in data.split("event: ")[1:]:
        kind, _, rest = block.partition("\n")
        document = json.loads(rest.partition("data: ")[2].partition("\n\n")[0])
        assert document["type"] == kind
        events.append(document)
    return events


async def test_create_and_retrieve() -> None:
    async with world() as w:
        made = (await ask(w.port, PATH, body(metadata={"a": "b"}, max_output_tokens=50))).json
        assert made["status"] == "completed" and made["metadata"] == {"a": "b"}
        assert made["output"][0]["content"][0] == {
            "type": "output_text",
            "text": "one two three",
            "annotations": [],
            "logprobs": [],
        }
        assert made["usage"]["total_tokens"] == 10 and made["max_output_tokens"] == 50
        assert (await look(w.port, f"{PATH}/{made['id']}")).json == made
        gone = await look(w.port, f"{PATH}/{made['id']}", method="DELETE")
        assert gone.json == {"id": made["id"], "object": "response", "deleted": True}
        missing = await look(w.port, f"{PATH}/{made['id']}")
        assert (missing.status, missing.error["code"]) == (404, "response_not_found")
        assert w.open_slots() == 0


async def test_store_false_is_not_kept() -> None:
    async with world() as w:
        made = (await ask(w.port, PATH, body(store=False))).json
        assert (await look(w.port, f"{PATH}/{made['id']}")).status == 404


async def test_stream_and_replay_from_any_number() -> None:
    async with world() as w:
        raw = await Raw.connect(w.port)
        await raw.post(PATH, body(stream=True))
        events = await sse(raw)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] == "response.completed"
        id = events[0]["response"]["id"]
        for after in (None, -1, 0, 3, len(events) - 2, len(events) - 1, 10**6):
            query = "stream=true" if after is None else f"stream=true&starting_after={after}"
            await raw.get(f"{PATH}/{id}?{query}")
            assert await sse(raw) == events[(after if after is not None else -1) + 1 :]
        await raw.get(f"{PATH}/{id}?stream=true&starting_after=x")
        assert (await raw.answer()).error["param"] == "starting_after"
        await raw.aclose()


async def test_logprobs_on_request() -> None:
    async with world() as w:
        fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
        made = (await ask(w.port, PATH, body("a b", **fields))).json
        logprobs = made["output"][0]["content"][0]["logprobs"]
        assert [entry["token"] for entry in logprobs] == ["a", " b"]
        assert logprobs[0]["top_logprobs"] == [{"token": "t0", "logprob": 0.0, "bytes": [116]}]


async def test_two_readers_follow_one_response_and_one_may_leave() -> None:
    async with world() as w:
        first, asked = await w.begin(PATH, body(stream=True))
        rid = asked.rids[0]
        await w.engine.say(rid, "one")
        await first.until(b"response.created")
        id = json.loads((await first.until(b"\n\n")).partition(b"data: ")[2])["response"]["id"]
        second, third = await Raw.connect(w.port), await Raw.connect(w.port)
        for raw in (second, third):
            await raw.get(f"{PATH}/{id}?stream=true")
            await raw.until(b'"delta":"one"')
        await second.aclose()
        await w.engine.say(rid, " two")
        await third.until(b'"delta":" two"')
        assert (await look(w.port, f"{PATH}/{id}")).json["status"] == "in_progress"
        await first.aclose()
        last = await third.until(b"0\r\n\r\n")
        assert b'"status":"cancelled"' in last and b"response.incomplete" in last
        await third.aclose()
        await w.all_free()


async def test_background_goes_on_without_anybody() -> None:
    async with world() as w:
        w.engine.manual = True
        made = (await ask(w.port, PATH, body(background=True))).json
        assert made["status"] == "in_progress" and made["background"] is True
        rid = (await w.engine.next()).rids[0]
        for word in ("one", " two"):
            await w.engine.say(rid, word)
        raw = await Raw.connect(w.port)
        await raw.get(f"{PATH}/{made['id']}?stream=true")
        await raw.until(b'"delta":" two"')
        await raw.aclose()
        await w.engine.say(rid, " three", finish=Finish.STOP)
        await w.all_free()
        done = (await look(w.port, f"{PATH}/{made['id']}")).json
        assert done["status"] == "completed"
        assert done["output"][0]["content"][0]["text"] == "one two three"
        raw = await Raw.connect(w.port)
        await raw.get(f"{PATH}/{made['id']}?stream=true&starting_after=4")
        assert [event["type"].removeprefix("response.") for event in await sse(raw)] == [
            *("output_text.delta", "output_text.delta"),
            *("output_text.done", "content_part.done", "output_item.done", "completed"),
        ]
        await raw.aclose()


async def test_cancel() -> None:
    async with world() as w:
        w.engine.manual = True
        made = (await ask(w.port, PATH, body(background=True))).json
        rid = (await w.engine.next()).rids[0]
        await w.engine.say(rid, "some")
        answer = await ask(w.port, f"{PATH}/{made['id']}/cancel", b"")
        assert answer.json["status"] == "cancelled"
        await w.engine.until(lambda: w.engine.aborted == [rid])
        await w.all_free()
        assert (await ask(w.port, f"{PATH}/{made['id']}/cancel", b"")).json["status"] == "cancelled"
        assert (await ask(w.port, f"{PATH}/resp_no/cancel", b"")).status == 404


async def test_input_items_become_messages() -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "not json"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
        {"role": "user", "content": "go on"},
    ]
    tools = [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}]
    async with world() as w:
        fields = {"instructions": "Short.", "tools": tools, "reasoning": {"effort": "low"}}
        assert (await ask(w.port, PATH, body(items, **fields))).status == 200
        prompt = w.engine.generates[0].prompt
        assert json.loads(prompt.messages) == [
            {"role": "system", "content": "Short."},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "a\nb"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
                    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "not json"}},
                ],
            },
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
            {"role": "assistant", "content": "so"},
            {"role": "user", "content": "go on"},
        ]
        assert json.loads(prompt.tools) == [
            {
                "type": "function",
                "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
            }
        ]
        assert json.loads(prompt.template_kwargs) == {"reasoning_effort": "low"}


async def test_openai_client() -> None:
    def talk(url: str) -> list[Any]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            first = client.responses.create(model="tiny", input="one two")
            second = client.responses.create(model="tiny", input="more", previous_response_id=first.id)
            with client.responses.stream(model="tiny", input="a b c") as stream:
                deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
                final = stream.get_final_response()
            resumed = client.responses.retrieve(final.id, stream=True, starting_after=3)
            kinds = [event.type for event in resumed]
            client.responses.delete(final.id)
            return [first.output_text, second.output_text, "".join(deltas), final.output_text, kinds[-1]]

    async with world() as w:
        said = await trio.to_thread.run_sync(talk, w.url)
        assert said == ["one two", "more", "a b c", "a b c", "response.completed"]
