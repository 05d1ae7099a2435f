"""The Responses WebSocket with the unmodified openai client: plain, with lanes, and asynchronous."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
import trio
import websockets.exceptions
import websockets.sync.client
from openai.lib.responses_websocket import (
    ResponsesWebSocketAccumulator,
    ResponsesWebSocketLimits,
    ResponsesWebSocketSession,
)
from websockets.typing import Subprotocol

from tests.actors.frontend.harness import world
from tests.patience import PATIENCE

pytestmark = pytest.mark.filterwarnings(
    "ignore:connect\\(\\) must be used as a context manager:DeprecationWarning"
)
"""The client opens its sync socket in a way that websockets 17 calls outdated; it works."""

LIMITS = ResponsesWebSocketLimits(
    max_lanes=8, max_events_per_lane=512, max_events=2048, max_bytes_per_lane=1 << 20, max_bytes=1 << 22
)


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def session_on(connection: Any) -> ResponsesWebSocketSession:
    return ResponsesWebSocketSession(connection, limits=LIMITS)


async def test_connect_create_and_chain() -> None:
    def talk(url: str) -> tuple[list[Any], Any]:
        with client(url) as c, c.responses.connect() as connection:
            connection.response.create(model="tiny", input="one two three", store=False)
            events = []
            for event in connection:
                events.append(event)
                if event.type == "response.completed":
                    break
            first = events[-1].response
            connection.response.create(model="tiny", input="four", previous_response_id=first.id, store=False)
            for event in connection:
                if event.type == "response.completed":
                    return events, event.response
        raise AssertionError("no answer")

    async with world() as w:
        events, second = await trio.to_thread.run_sync(talk, w.url)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].response.output_text == "one two three"
        assert events[-1].response.usage.total_tokens == 10
        assert second.output_text == "four"
        messages = w.engine.generates[1].prompt.messages
        assert messages == (
            b'[{"role":"user","content":"one two three"},{"role":"assistant","content":"one two three"},'
            b'{"role":"user","content":"four"}]'
        )
        await w.all_free()


async def test_lanes_of_the_session_helper() -> None:
    def talk(url: str) -> dict[str, str]:
        with client(url) as c, c.responses.connect() as connection, session_on(connection) as session:
            lanes = {name: session.lane(name) for name in ("a", "b", "c")}
            for name, lane in lanes.items():
                lane.send({"type": "response.create", "model": "tiny", "input": f"I am {name}"})
            said = {
                name: lane.get_final_response(timeout=PATIENCE).output_text for name, lane in lanes.items()
            }
            session.default.send({"type": "response.create", "model": "tiny", "input": "me too"})
            said["default"] = session.default.get_final_response(timeout=PATIENCE).output_text
            return said

    async with world() as w:
        said = await trio.to_thread.run_sync(talk, w.url)
        assert said == {"a": "I am a", "b": "I am b", "c": "I am c", "default": "me too"}


async def test_accumulator_accepts_every_event() -> None:
    def talk(url: str) -> tuple[str, str]:
        with client(url) as c, c.responses.connect() as connection, session_on(connection) as session:
            lane, accumulator = session.lane("x"), ResponsesWebSocketAccumulator()
            lane.send({"type": "response.create", "model": "tiny", "input": "one two three"})
            while accumulator.snapshot().terminal_type is None:
                accumulator.add_event(lane.recv(timeout=PATIENCE))
            return accumulator.snapshot().output_text, accumulator.get_final_response().output_text

    async with world() as w:
        assert await trio.to_thread.run_sync(talk, w.url) == ("one two three", "one two three")


async def test_steer_is_refused_as_the_client_expects() -> None:
    def talk(url: str) -> Any:
        with client(url) as c, c.responses.connect() as connection:
            connection.response.steer(input="left", previous_response_id="resp_1")
            return connection.recv()

    async with world() as w:
        event = await trio.to_thread.run_sync(talk, w.url)
        assert event.type == "response.steer.failed"
        assert event.error.code == "steering_not_supported"
        assert event.steer.input == "left"


async def test_wrong_key_is_refused_before_the_socket_opens() -> None:
    def talk(url: str, key: str) -> str:
        with client(url, key) as c, c.responses.connect() as connection:
            connection.response.create(model="tiny", input="hello you")
            for event in connection:
                if event.type == "response.completed":
                    return event.response.output_text
        return ""

    async with world(api_keys=("secret",)) as w:
        assert await trio.to_thread.run_sync(talk, w.url, "secret") == "hello you"
        with pytest.raises(Exception, match="401"):
            await trio.to_thread.run_sync(talk, w.url, "wrong")


async def test_async_client() -> None:
    async def talk(url: str) -> str:
        c = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
        async with c, c.responses.connect() as connection:
            await connection.response.create(model="tiny", input="from asyncio")
            async for event in connection:
                if event.type == "response.completed":
                    return event.response.output_text
        return ""

    async with world() as w:
        assert await trio.to_thread.run_sync(lambda: asyncio.run(talk(w.url))) == "from asyncio"


async def test_a_web_page_brings_its_key_as_a_subprotocol() -> None:
    def talk(url: str, *offered: str) -> tuple[str | None, str]:
        address = f"ws{url.removeprefix('http')}/v1/responses"
        subprotocols = [Subprotocol(each) for each in offered]
        with websockets.sync.client.connect(address, subprotocols=subprotocols, proxy=None) as socket:
            socket.send('{"type": "response.create", "model": "tiny", "input": "hello", "stream_id": "page"}')
            return socket.subprotocol, json.loads(socket.recv())["type"]

    async with world(api_keys=("top secret/(1)",)) as w:
        key = "openai-insecure-api-key.top%20secret%2F%281%29"
        for offered in (("responses", key), (key, "responses")):
            said = await trio.to_thread.run_sync(talk, w.url, *offered)
            assert said == ("responses", "response.created")
        assert (await trio.to_thread.run_sync(talk, w.url, key))[0] is None
        for wrong in (("responses",), ("responses", "openai-insecure-api-key.x"), ("responses", key[:-1])):
            with pytest.raises(websockets.exceptions.InvalidStatus, match="401"):
                await trio.to_thread.run_sync(talk, w.url, *wrong)
