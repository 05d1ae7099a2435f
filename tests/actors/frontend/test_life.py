"""A frontend's life: health, a tokenizer's death, stopping while clients are served, and starting again."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from actors.frontend.health import HANG_SECONDS, Health
from protocols.board import Column, State
from protocols.request import Finish
from runtime.board import Board
from tests.actors.frontend.harness import Raw, Socket, ask, chat_body, look, world
from tests.patience import PATIENCE

CHAT = "/v1/chat/completions"


async def test_health_needs_everybody() -> None:
    async with world() as w:
        answer = await look(w.port, "/health")
        assert answer.status == 200 and answer.json == {"status": "ok"}
        w.board.row(3)[Column.STATE] = State.STARTING
        answer = await look(w.port, "/health")
        assert (answer.status, answer.error["code"]) == (503, "unhealthy")
        assert "executor.0 (starting)" in answer.error["message"]
        assert (await look(w.port, "/version")).status == 200


def test_a_hung_executor_is_unhealthy() -> None:
    board = Board.create(1)
    row = board.row(0)
    row[Column.STATE], row[Column.LOOP_TICK] = State.READY, 5
    health = Health(board, {"executor.0": 0})
    for half_seconds in range(int(2 * HANG_SECONDS) + 4):
        health.look(half_seconds / 2)
    assert "no turn of its loop" in health.problems()["executor.0"]
    row[Column.LOOP_TICK] = 6
    health.look(1000.0)
    assert health.problems() == {}
    row[Column.INCARNATION] = 9
    assert health.look(1000.5) == ["executor.0"]
    board.close()


async def test_what_a_dead_tokenizer_read_is_sent_again() -> None:
    async with world() as w:
        raw, lost = await w.begin(CHAT, chat_body())
        w.board.row(1)[Column.INCARNATION] = 2
        again = await w.engine.next()
        assert again == lost
        await w.engine.answer(again, again.rids[0])
        assert (await raw.answer()).status == 200
        await raw.aclose()


async def test_orphans_are_aborted_at_the_start() -> None:
    async with world(orphans=3) as w:
        await w.engine.until(lambda: len(w.engine.aborted) == 3)
        await w.all_free()


async def test_stopping_finishes_what_runs() -> None:
    async with world() as w:
        w.engine.manual = True
        running, idle = await Raw.connect(w.port), await Raw.connect(w.port)
        await idle.get("/version")
        await idle.answer()
        await running.post(CHAT, chat_body(stream=True))
        rid = (await w.engine.next()).rids[0]
        await w.engine.say(rid, "some")
        await running.until(b"some")
        w.context.stopping.set()
        assert await idle.to_eof() == b""
        await w.engine.say(rid, " more", finish=Finish.STOP)
        rest = await running.to_eof()
        assert b" more" in rest and b"[DONE]" in rest
        with trio.fail_after(PATIENCE):
            await w.stopped.wait()
        await running.aclose()
        await idle.aclose()


async def test_stopping_sockets_get_1012_when_they_are_done() -> None:
    async with world() as w:
        w.engine.manual = True
        idle, busy = await Socket.connect(w.port), await Socket.connect(w.port)
        await busy.create("first")
        await busy.create("second")
        rid = (await w.engine.next()).rids[0]
        w.context.stopping.set()
        assert await idle.close_code() == 1012
        await idle.aclose()
        await w.engine.say(rid, "done", finish=Finish.STOP)
        assert (await busy.events())[-1]["type"] == "response.completed"
        rid = (await w.engine.next()).rids[0]
        await busy.create("too late", stream_id="late")
        await w.engine.say(rid, "done too", finish=Finish.STOP)
        seen: list[Any] = []
        while len(seen) < 2:
            events = await busy.events()
            seen.append(events[-1])
        refused = next(event for event in seen if event["type"] == "error")
        assert (refused["status"], refused["stream_id"]) == (503, "late")
        assert await busy.close_code() == 1012
        await busy.aclose()
        with trio.fail_after(PATIENCE):
            await w.stopped.wait()


async def test_draining_has_an_end_and_leaves_what_can_be_resumed() -> None:
    async with world(drain_seconds=0.05) as w:
        w.engine.manual = True
        raw, socket = await Raw.connect(w.port), await Socket.connect(w.port)
        await raw.post(CHAT, chat_body())
        await socket.create()
        requests = [await w.engine.next() for _ in range(2)]
        chat, response = sorted(requests, key=lambda generate: generate.client)
        w.context.stopping.set()
        with trio.fail_after(PATIENCE):
            await w.stopped.wait()
        assert w.engine.aborted == list(chat.rids)
        assert w.ledger.finish(response.rids[0]) is Finish.NONE
        await raw.aclose()
        await socket.aclose()


async def test_a_kept_connection_is_told_to_go() -> None:
    async with world() as w:
        raw, generate = await w.begin(CHAT, chat_body())
        await raw.post(CHAT, chat_body())
        w.context.stopping.set()
        await w.engine.answer(generate, generate.rids[0])
        answer = await raw.answer()
        assert answer.status == 200 and answer.headers["connection"] == "close"
        assert await raw.to_eof() == b""
        await raw.aclose()


async def test_the_board_shows_connections_and_open_requests() -> None:
    async with world() as w:
        raw, _ = await w.begin(CHAT, chat_body(n=3))
        with trio.fail_after(PATIENCE):
            while w.board.row(0)[Column.OPEN_REQUESTS] != 3:
                await trio.sleep(0.01)
        assert w.board.row(0)[Column.CONNECTIONS] == 1
        assert w.board.row(0)[Column.STATE] == State.READY
        await raw.aclose()
        assert (await ask(w.port, "/v1/nowhere", {})).status == 404
