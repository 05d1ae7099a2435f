"""The Responses WebSocket, event by event: lanes, chaining, cancelling, errors, slow and vanished clients."""

from __future__ import annotations

import json
import socket
import struct

import pytest
import trio

from actors.frontend.lanes import MAX_NAMED, MAX_QUEUED, MAX_RUNNING
from protocols.errors import ErrorBody
from protocols.request import Finish
from tests.actors.frontend.harness import Raw, Socket, ask, look, world
from tests.patience import PATIENCE

EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


async def test_the_conversation_of_the_specification() -> None:
    async with world() as w:
        s = await Socket.connect(w.port)
        await s.create("Hello", stream_id="planner", store=False)
        events = await s.events()
        assert [event["type"] for event in events] == EVENTS
        assert [event["sequence_number"] for event in events] == list(range(9))
        assert all(event["stream_id"] == "planner" for event in events)
        created, last = events[0]["response"], events[-1]["response"]
        assert set(created) >= {
            *("id", "object", "created_at", "status", "model", "output", "error", "incomplete_details"),
            *("instructions", "metadata", "parallel_tool_calls", "temperature", "top_p", "tool_choice"),
            *("tools", "previous_response_id", "text", "truncation", "usage", "store"),
        }
        assert (created["status"], created["store"], created["text"]) == (
            "in_progress",
            False,
            {"format": {"type": "text"}},
        )
        assert last["output"] == [events[-2]["item"]]
        assert last["output"][0]["content"][0]["text"] == "Hello"
        item = events[2]["item"]["id"]
        assert {e["item_id"] for e in events if "item_id" in e} == {item}
        await s.create("more", stream_id="planner", previous_response_id="resp_nope")
        assert await s.event() == {
            "type": "error",
            "status": 400,
            "stream_id": "planner",
            "error": {
                "type": "invalid_request_error",
                "code": "previous_response_not_found",
                "message": "Previous response with id 'resp_nope' not found.",
                "param": "previous_response_id",
            },
        }
        await s.aclose()


async def test_the_default_lane_has_no_stream_id() -> None:
    async with world() as w:
        s = await Socket.connect(w.port)
        await s.create()
        assert not any("stream_id" in event for event in await s.events())
        await s.aclose()


async def test_lanes_run_together_and_each_keeps_its_order() -> None:
    async with world() as w:
        w.engine.manual = True
        s = await Socket.connect(w.port)
        await s.create("a1", stream_id="a")
        await s.create("a2", stream_id="a")
        await s.create("b1", stream_id="b")
        first, second = await w.engine.next(), await w.engine.next()
        assert [json.loads(g.prompt.messages)[0]["content"] for g in (first, second)] == ["a1", "b1"]
        for _ in range(4):
            await s.event()
        await w.engine.say(second.rids[0], "from b", finish=Finish.STOP)
        events = await s.events()
        assert {event["stream_id"] for event in events} == {"b"}
        await w.engine.say(first.rids[0], "from a", finish=Finish.STOP)
        await s.events()
        third = await w.engine.next()
        assert json.loads(third.prompt.messages)[0]["content"] == "a2"
        await w.engine.say(third.rids[0], "again", finish=Finish.STOP)
        events = await s.events()
        assert events[0]["type"] == "response.created" and events[0]["sequence_number"] == 0
        await s.aclose()
        await w.all_free()


async def test_chaining_without_storing() -> None:
    async with world() as w:
        s = await Socket.connect(w.port)
        await s.create("one", store=False, instructions="Be brief.")
        first = (await s.events())[-1]["response"]["id"]
        await s.create("two", store=False, previous_response_id=first)
        second = (await s.events())[-1]["response"]
        assert second["previous_response_id"] == first
        assert json.loads(w.engine.generates[0].prompt.messages)[0] == {
            "role": "system",
            "content": "Be brief.",
        }
        assert [m["content"] for m in json.loads(w.engine.generates[1].prompt.messages)] == [
            "one",
            "one",
            "two",
        ]
        await s.create("three", previous_response_id=first)
        assert (await s.event())["error"]["code"] == "previous_response_not_found"
        assert (await look(w.port, f"/v1/responses/{first}")).status == 404
        await s.aclose()


async def test_stored_responses_are_continued_from_anywhere() -> None:
    async with world() as w:
        answer = await ask(w.port, "/v1/responses", {"model": "tiny", "input": "one"})
        s = await Socket.connect(w.port)
        await s.create("two", previous_response_id=answer.json["id"])
        last = (await s.events())[-1]
        assert last["type"] == "response.completed"
        await s.aclose()
        assert (await look(w.port, f"/v1/responses/{last['response']['id']}")).status == 200


async def test_a_warm_up_is_silent_and_can_be_continued() -> None:
    async with world() as w:
        s = await Socket.connect(w.port)
        await s.create("long prompt", generate=False)
        events = await s.events()
        assert [event["type"] for event in events] == [EVENTS[0], EVENTS[1], EVENTS[-1]]
        assert events[-1]["response"]["output"] == []
        assert w.engine.generates[0].sampling.max_tokens == 0
        await s.create("now", previous_response_id=events[-1]["response"]["id"])
        assert (await s.events())[-1]["response"]["output"][0]["content"][0]["text"] == "now"
        contents = [m["content"] for m in json.loads(w.engine.generates[1].prompt.messages)]
        assert contents == ["long prompt", "now"]
        await s.aclose()


async def test_cancel_ends_in_incomplete() -> None:
    async with world() as w:
        w.engine.manual = True
        s = await Socket.connect(w.port)
        await s.create(stream_id="a")
        rid = (await w.engine.next()).rids[0]
        id = (await s.event())["response"]["id"]
        await w.engine.say(rid, "some")
        await s.send({"type": "response.cancel", "response_id": "resp_other"})
        seen = [await s.event() for _ in range(5)]
        other = next(event for event in seen if event["type"] == "error")
        assert (other["status"], other["error"]["code"]) == (404, "response_not_found")
        await s.send({"type": "response.cancel", "response_id": id})
        last = (await s.events())[-1]
        assert last["type"] == "response.incomplete" and last["stream_id"] == "a"
        assert last["response"]["status"] == "cancelled"
        assert last["response"]["output"][0]["content"][0]["text"] == "some"
        await w.engine.until(lambda: w.engine.aborted == [rid])
        await w.all_free()
        w.engine.manual = False
        await s.create("next", stream_id="a")
        assert (await s.events())[-1]["type"] == "response.completed"
        await s.aclose()


async def test_the_length_limit() -> None:
    async with world() as w:
        s = await Socket.connect(w.port)
        await s.create("one two three", max_output_tokens=2)
        last = (await s.events())[-1]
        assert last["type"] == "response.incomplete"
        assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
        assert last["response"]["output"][0]["status"] == "incomplete"
        await s.aclose()


async def test_a_refusal_of_the_engine_fails_the_response() -> None:
    async with world() as w:
        w.engine.refusal = ErrorBody(400, "Too long.", code="context_length_exceeded", param="input")
        s = await Socket.connect(w.port)
        await s.create()
        events = await s.events()
        assert [event["type"] for event in events] == [*EVENTS[:2], "response.failed"]
        assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"
        await s.aclose()


BAD_EVENTS = {
    "not json": (b"{", "invalid_json", None),
    "not an object": (b"[]", "invalid_type", None),
    "no type": (b"{}", "missing_required_parameter", "type"),
    "unknown type": (b'{"type":"session.update"}', "invalid_event_type", "type"),
    "wrong field": (b'{"type":"response.create","input":5}', "invalid_type", "input"),
    "no model": (b'{"type":"response.create","input":"x"}', "missing_required_parameter", "model"),
    "other model": (b'{"type":"response.create","model":"x","input":"x"}', "model_not_found", "model"),
    "lane name": (
        b'{"type":"response.create","model":"tiny","stream_id":"a b"}',
        "invalid_stream_id",
        "stream_id",
    ),
    "steer without id": (b'{"type":"response.steer"}', "missing_required_parameter", "previous_response_id"),
    "twice": (
        b'{"type":"response.cancel","response_id":"a","response_id":"b"}',
        "invalid_json",
        "response_id",
    ),
}


async def test_bad_events_are_answered_and_the_socket_lives() -> None:
    async with world() as w:
        s = await Socket.connect(w.port)
        for data, code, param in BAD_EVENTS.values():
            await s.send(data)
            event = await s.event()
            assert event["type"] == "error" and event["status"] in (400, 404)
            assert (event["error"]["code"], event["error"]["param"]) == (code, param), data
        await s.create()
        assert (await s.events())[-1]["type"] == "response.completed"
        await s.aclose()


async def test_errors_name_the_lane_of_a_bad_event() -> None:
    async with world() as w:
        s = await Socket.connect(w.port)
        await s.send({"type": "response.create", "stream_id": "a", "input": 5})
        assert (await s.event())["stream_id"] == "a"
        await s.send({"type": "response.create", "stream_id": "a b"})
        assert "stream_id" not in await s.event()
        await s.aclose()


async def test_the_model_may_come_with_the_address() -> None:
    async with world() as w:
        s = await Socket.connect(w.port, path="/v1/responses?model=tiny")
        await s.send({"type": "response.create", "input": "x"})
        assert (await s.events())[-1]["type"] == "response.completed"
        await s.aclose()


async def test_bounds_of_a_connection() -> None:
    async with world() as w:
        w.engine.manual = True
        s = await Socket.connect(w.port)
        for i in range(MAX_NAMED):
            await s.create(stream_id=f"lane{i}")
        await s.create(stream_id="more")
        for _ in range(MAX_QUEUED - (MAX_NAMED - MAX_RUNNING) + 1):
            await s.create(stream_id="lane0")
        errors = []
        while len(errors) < 2:
            event = await s.event()
            if event["type"] == "error":
                errors.append((event["status"], event["error"]["code"]))
        assert errors == [(400, "websocket_stream_limit_reached"), (429, "rate_limit_exceeded")]
        assert len(w.engine.generates) == MAX_RUNNING
        await s.aclose()
        await w.all_free()


async def test_pings_are_answered_while_responses_run() -> None:
    async with world() as w:
        w.engine.manual = True
        s = await Socket.connect(w.port)
        await s.create()
        await w.engine.next()
        await s.event()
        await s.event()
        await s.frame(9, b"still there")
        assert await s.any_frame() == (10, b"still there")
        await s.aclose()


@pytest.mark.parametrize("polite", [False, True])
async def test_closing_aborts_everything(polite: bool) -> None:
    async with world() as w:
        w.engine.manual = True
        s = await Socket.connect(w.port)
        rids = []
        for lane in ("a", "b", "c"):
            await s.create(stream_id=lane)
            rids += (await w.engine.next()).rids
        if polite:
            await s.frame(8, b"\x03\xe8")
        else:
            await s.aclose()
        with trio.fail_after(PATIENCE):
            await w.engine.until(lambda: sorted(w.engine.aborted) == rids)
        await w.all_free()
        await s.aclose()


async def test_a_slow_reader_gets_every_event_and_its_neighbour_is_not_held_up() -> None:
    async with world() as w:
        w.engine.manual = True
        slow, quick = await Socket.connect(w.port), await Socket.connect(w.port)
        await slow.create()
        slow_rid = (await w.engine.next()).rids[0]
        await quick.create()
        quick_rid = (await w.engine.next()).rids[0]
        said = ""
        for i in range(2000):
            said += (piece := f"<{i}>" + "y" * 3000)
            await w.engine.say(slow_rid, piece)
        await w.engine.say(quick_rid, "hello", finish=Finish.STOP)
        assert (await quick.events())[-1]["type"] == "response.completed"
        await w.engine.say(slow_rid, "", finish=Finish.STOP)
        events = await slow.events()
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        deltas = [event["delta"] for event in events if event["type"].endswith("text.delta")]
        assert "".join(deltas) == said and len(deltas) == 2000
        await slow.aclose()
        await quick.aclose()


async def test_a_message_beyond_the_limit_closes_with_1009() -> None:
    async with world(max_body=1000) as w:
        s = await Socket.connect(w.port)
        await s.create("x" * 2000)
        assert await s.close_code() == 1009
        await s.aclose()


async def test_a_refused_handshake_is_plain_json() -> None:
    async with world(api_keys=("key",)) as w:
        raw = await Raw.connect(w.port)
        await raw.get(
            "/v1/responses",
            "connection: upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        answer = await raw.answer()
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        await raw.aclose()
        s = await Socket.connect(w.port, "authorization: Bearer key")
        await s.create()
        assert (await s.events())[-1]["type"] == "response.completed"
        await s.aclose()


async def test_overload_is_an_error_event() -> None:
    async with world(slots=1) as w:
        w.engine.manual = True
        s = await Socket.connect(w.port)
        await s.create(stream_id="a")
        await w.engine.next()
        await s.create(stream_id="b")
        events = await s.events()
        assert (events[-1]["status"], events[-1]["error"]["code"]) == (503, "server_overloaded")
        assert events[-1]["stream_id"] == "b"
        await s.aclose()


async def test_a_running_response_is_resumed_on_a_lane_of_another_socket() -> None:
    async with world() as w:
        w.engine.manual = True
        answer = await ask(w.port, "/v1/responses", {"model": "tiny", "input": "one", "background": True})
        id, rid = answer.json["id"], (await w.engine.next()).rids[0]
        await w.engine.say(rid, "some")
        s = await Socket.connect(w.port)
        resume = {"type": "response.resume", "response_id": id, "stream_id": "back"}
        await s.send({**resume, "starting_after": 2})
        seen = [await s.event(), await s.event()]
        assert [(event["sequence_number"], event["stream_id"]) for event in seen] == [
            (3, "back"),
            (4, "back"),
        ]
        await s.send({**resume, "stream_id": "second"})
        assert (await s.event())["error"]["code"] == "response_already_followed"
        await w.engine.say(rid, " more", finish=Finish.STOP)
        rest = await s.events()
        assert [event["sequence_number"] for event in rest] == list(range(5, 10))
        assert rest[-1]["response"]["output"][0]["content"][0]["text"] == "some more"
        await s.send(resume)
        assert [event["sequence_number"] for event in await s.events()] == list(range(10))
        await s.send({**resume, "response_id": "resp_nope"})
        assert (await s.event())["error"]["code"] == "response_not_found"
        await s.aclose()


async def test_who_resumes_does_not_abort_when_it_goes() -> None:
    async with world() as w:
        w.engine.manual = True
        first, second = await Socket.connect(w.port), await Socket.connect(w.port)
        await first.create()
        rid = (await w.engine.next()).rids[0]
        id = (await first.event())["response"]["id"]
        await second.send({"type": "response.resume", "response_id": id})
        assert (await second.event())["type"] == "response.created"
        await second.aclose()
        await w.engine.say(rid, "all", finish=Finish.STOP)
        assert (await first.events())[-1]["type"] == "response.completed"
        assert w.engine.aborted == []
        await first.aclose()


async def test_a_lane_goes_on_from_a_response_that_it_resumed() -> None:
    async with world(linger_seconds=60.0) as w:
        first, second = await Socket.connect(w.port), await Socket.connect(w.port)
        await first.create("one", store=False)
        id = (await first.events())[-1]["response"]["id"]
        await first.aclose()
        await second.send({"type": "response.resume", "response_id": id, "starting_after": 3})
        assert (await second.events())[0]["sequence_number"] == 4
        await second.create("two", previous_response_id=id)
        assert (await second.events())[-1]["type"] == "response.completed"
        contents = [m["content"] for m in json.loads(w.engine.generates[1].prompt.messages)]
        assert contents == ["one", "one", "two"]
        assert w.engine.replays == [w.engine.generates[0].rids[0]]
        await second.aclose()


async def test_a_full_server_closes_the_socket_that_rested_longest_with_1013() -> None:
    async with world(max_connections=2) as w:
        w.engine.manual = True
        oldest, busy = await Socket.connect(w.port), await Socket.connect(w.port)
        third = await Socket.connect(w.port)
        assert await oldest.close_code() == 1013
        await busy.create()
        rid = (await w.engine.next()).rids[0]
        fourth = await Socket.connect(w.port)
        assert await third.close_code() == 1013
        await fourth.aclose()
        silent = await Raw.connect(w.port)
        await silent.get("/version")
        assert (await silent.answer()).status == 200
        await w.engine.say(rid, "done", finish=Finish.STOP)
        assert (await busy.events())[-1]["type"] == "response.completed"
        fifth = await Socket.connect(w.port)
        assert await silent.to_eof() == b"", "a connection between two requests gives way first"
        await fifth.create()
        await w.engine.next()
        assert (await look(w.port, "/version")).status == 200
        assert await busy.close_code() == 1013
        for client in (oldest, busy, third, fifth, silent):
            await client.aclose()


async def test_an_internal_error_closes_with_1011(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async with world() as w:
        s = await Socket.connect(w.port)
        monkeypatch.setattr("actors.frontend.turns.prepare", fail)
        await s.create()
        assert await s.close_code() == 1011
        await s.aclose()
        monkeypatch.undo()
        other = await Socket.connect(w.port)
        await other.create()
        assert (await other.events())[-1]["type"] == "response.completed"
        await other.aclose()


async def test_messages_that_the_server_has_no_memory_for_close_with_1013() -> None:
    """Unfinished ones in one piece or many, those that wait their turn, and those that are worked on; others
    are served."""
    half = 40_000
    async with world(max_bodies=100_000, max_body=90_000) as w:
        w.engine.manual = True
        first, second = await Socket.connect(w.port), await Socket.connect(w.port)
        await first.raw.send(struct.pack("!BBQ", 0x81, 0xFF, 80_000) + bytes(4) + b"a" * half)
        await second.raw.send(struct.pack("!BBQ", 0x01, 0xFF, half) + bytes(4) + b"a" * half)
        await second.raw.send(struct.pack("!BBQ", 0x00, 0xFF, half) + bytes(4) + b"a" * half)
        assert await second.close_code() == 1013
        await second.aclose()
        third = await Socket.connect(w.port)
        await third.create()
        rid = (await w.engine.next()).rids[0]
        for _ in range(2):
            await third.create("b" * half)
        while (event := await third.any_frame())[0] != 8:
            pass
        assert struct.unpack("!H", event[1][:2])[0] == 1013
        await third.aclose()
        await w.engine.until(lambda: w.engine.aborted == [rid])
        assert (await look(w.port, "/version")).status == 200
        await first.raw.send(b"a" * half)
        assert (await first.event())["error"]["code"] == "invalid_json"
        await first.aclose()


async def test_what_is_worked_on_counts_until_its_end() -> None:
    async with world(max_bodies=100_000) as w:
        w.engine.manual = True
        for _ in range(3):
            s, other = await Socket.connect(w.port), await Socket.connect(w.port)
            for lane in ("a", "b"):
                await s.create("b" * 40_000, stream_id=lane)
            running = [await w.engine.next() for _ in range(2)]
            await other.create("c" * 40_000)
            assert await other.close_code() == 1013
            await other.aclose()
            for generate in running:
                await w.engine.say(generate.rids[0], "done", finish=Finish.STOP)
                await s.events()
            await s.aclose()
        assert await ask(w.port, "/v1/completions", {"prompt": "x" * 90_000})


async def test_who_stops_reading_in_a_stream_is_cut_off_and_nobody_else_notices() -> None:
    """No close frame could reach it: what it finds later, if it reads again, is whole events and the end."""
    async with world(write_seconds=0.3) as w:
        w.engine.manual = True
        stalled, quick = await Socket.connect(w.port), await Socket.connect(w.port)
        stalled.raw.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        await stalled.create()
        lost = (await w.engine.next()).rids[0]
        await quick.create()
        kept = (await w.engine.next()).rids[0]
        pieces = 0
        with trio.fail_after(PATIENCE):
            while lost not in w.engine.aborted:
                await w.engine.say(lost, "y" * 3000)
                await w.engine.say(kept, f"<{pieces}>")
                pieces += 1
                await trio.sleep(0.001)
        await w.engine.say(kept, "", finish=Finish.STOP)
        deltas = [e["delta"] for e in await quick.events() if e["type"].endswith("text.delta")]
        assert "".join(deltas) == "".join(f"<{i}>" for i in range(pieces))
        seen = []
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            while True:
                seen.append(await stalled.event())
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        assert sum(len(json.dumps(event)) for event in seen) < 8 << 20
        await w.all_free()
        for client in (stalled, quick):
            await client.aclose()


@pytest.mark.parametrize("start", [b"\x81\x85\0\0\0\0ab", b"\x01\x80\0\0\0\0", b"\x81"])
async def test_a_message_that_does_not_end_closes_with_1008(start: bytes) -> None:
    async with world(body_seconds=0.2) as w:
        idle, slow = await Socket.connect(w.port), await Socket.connect(w.port)
        await slow.raw.send(start)
        assert await slow.close_code() == 1008
        await slow.aclose()
        await idle.create()
        assert (await idle.events())[-1]["type"] == "response.completed"
        await idle.aclose()
