"""Streams under stress: slow readers, vanished clients, refusals, engine failures, and what stays free."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from protocols.errors import ErrorBody
from protocols.request import Finish
from tests.actors.frontend.harness import ask, chat_body, look, world
from tests.patience import PATIENCE

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
TOO_LONG = ErrorBody(400, "Too long.", code="context_length_exceeded", param="prompt")


def bodies(**fields: Any) -> list[tuple[str, dict[str, Any]]]:
    return [
        (CHAT, chat_body(**fields)),
        ("/v1/completions", {"model": "tiny", "prompt": "one two", **fields}),
        (RESPONSES, {"model": "tiny", "input": "one two", **fields}),
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_refusal_is_a_status(which: int, stream: bool) -> None:
    path, body = bodies(stream=stream)[which]
    async with world() as w:
        w.engine.refusal = TOO_LONG
        answer = await ask(w.port, path, body)
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert answer.error["param"] == ("messages", "prompt", "input")[which]
        assert w.open_slots() == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_vanished_client_aborts(which: int, stream: bool) -> None:
    path, body = bodies(stream=stream)[which]
    async with world() as w:
        raw, generate = await w.begin(path, body)
        await w.engine.say(generate.rids[0], "some")
        if stream:
            await raw.until(b"some")
        await raw.aclose()
        with trio.fail_after(PATIENCE):
            await w.engine.until(lambda: list(generate.rids) == w.engine.aborted)
        await w.all_free()


async def test_rows_go_out_as_they_come() -> None:
    async with world() as w:
        raw, asked = await w.begin(CHAT, chat_body(stream=True))
        rid = asked.rids[0]
        for word in ("one", "two", "three"):
            await w.engine.say(rid, word)
            await raw.until(word.encode())
        await w.engine.say(rid, "", finish=Finish.STOP)
        await raw.until(b"[DONE]")
        await raw.aclose()
        await w.all_free()


async def test_rows_of_one_message_are_one_write() -> None:
    async with world() as w:
        raw, asked = await w.begin(CHAT, chat_body(stream=True))
        rid = asked.rids[0]
        await w.engine.say(rid, "first")
        await raw.until(b"first")
        await raw.until(b"\n\n\r\n")
        await w.engine.send(w.engine.row(rid, "a"), w.engine.row(rid, "b"), w.engine.row(rid, "c"))
        chunk = await raw.until(b"\n\n\r\n")
        assert b'"content":"abc"' in chunk
        await raw.aclose()


async def test_text_merges_behind_a_slow_reader_and_none_is_lost() -> None:
    async with world() as w:
        raw, asked = await w.begin(CHAT, chat_body(stream=True))
        rid = asked.rids[0]
        said = ""
        for i in range(3000):
            piece = f"<{i}>" + "x" * 2000
            said += piece
            await w.engine.say(rid, piece)
        await w.engine.say(rid, "", finish=Finish.STOP)
        await w.all_free()
        read, chunks = "", 0
        await raw.until(b"\r\n\r\n")
        data = (await raw.until(b"data: [DONE]")).replace(b"\r\n", b"\n")
        for line in data.split(b"\n"):
            if line.startswith(b"data: {"):
                delta = json.loads(line[6:])["choices"][0]["delta"]
                read += delta.get("content", "")
                chunks += 1
        assert read == said
        assert chunks < 2000, "what queued behind the socket was merged"
        await raw.aclose()


async def test_a_failure_in_mid_stream() -> None:
    async with world() as w:
        raw, asked = await w.begin(CHAT, chat_body(stream=True))
        rid = asked.rids[0]
        await w.engine.say(rid, "some")
        await raw.until(b"some")
        error = ErrorBody(500, "NaN.", "server_error", "internal_error")
        await w.engine.say(rid, "", finish=Finish.ERROR, error=error)
        assert (await raw.event())["error"]["message"] == "NaN."
        assert await raw.event() is None
        await raw.until(b"0\r\n\r\n")
        await raw.get("/version")
        assert (await raw.answer()).status == 200
        await raw.aclose()


async def test_no_room_is_a_503_with_a_time_to_come_back() -> None:
    async with world(slots=1) as w:
        raw, _ = await w.begin(CHAT, chat_body())
        answer = await ask(w.port, CHAT, chat_body())
        assert (answer.status, answer.error["code"]) == (503, "server_overloaded")
        assert answer.error["type"] == "overloaded_error" and answer.headers["retry-after"] == "1"
        await raw.aclose()
        await w.all_free()
        w.engine.manual = False
        assert (await ask(w.port, CHAT, chat_body())).status == 200


async def test_many_clients_at_once_get_their_own_answers() -> None:
    async with world(slots=64, tokenizers=3) as w:

        async def one(number: int) -> None:
            answer = await ask(w.port, CHAT, chat_body(f"I am number {number}"))
            assert answer.json["choices"][0]["message"]["content"] == f"I am number {number}"

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
        await w.all_free()
        assert len(w.engine.generates) == 50


async def test_health_generate_really_generates() -> None:
    async with world() as w:
        answer = await look(w.port, "/health_generate")
        assert answer.status == 200
        assert w.engine.generates[0].sampling.max_tokens == 1
        w.engine.refusal = ErrorBody(503, "No.", "server_error")
        assert (await look(w.port, "/health_generate")).status == 503
