"""A frontend dies: whoever takes the response up makes the same numbered events, and nothing stays open."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.frontend import finder, ledger_slots
from actors.frontend.live import LiveResponse, Reader
from actors.tokenizer import records
from actors.tokenizer.outgoing import Backlog
from protocols.errors import UserError
from protocols.messages import Abort, Deltas, Replay, StopHere, TextRow
from protocols.request import Finish, slot_of
from tests.actors.edge_in_memory import Edge, documents
from tests.actors.tokenizer.parts import codec_of
from tests.patience import PATIENCE

KINDS = ("byte_level", "llama")


@contextlib.contextmanager
def edge_of(**options: Any) -> Iterator[Edge]:
    edge = Edge(**options)
    with contextlib.closing(edge):
        yield edge


def ids_of(text: str, kind: str = "byte_level") -> list[int]:
    found: list[int] = codec_of(kind).encode(text, add_special=False).tolist()
    return found


def rid_of(live: LiveResponse) -> int:
    return live.generation.choices[0].rid


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """What shapes the events."""
    return {
        "stop": draw(st.lists(st.text("abe ", min_size=1, max_size=3), max_size=2)) or None,
        "include_stop_str_in_output": draw(st.booleans()),
        "min_tokens": draw(st.integers(0, 4)),
        "include": draw(st.sampled_from([None, ["message.output_text.logprobs"]])),
        "instructions": draw(st.sampled_from([None, "Be brief."])),
        "metadata": {"a": "b"},
        "seed": 5,
    }


def tokens_of(data: st.DataObject, kind: str) -> list[int]:
    """Any tokens, of which many are half characters."""
    size = codec_of(kind).pieces.tokenizer.get_vocab_size()
    return data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=16))


def finish_of(tokens: list[int], kind: str) -> Finish:
    return Finish.STOP if tokens[-1] == codec_of(kind).eos else Finish.LENGTH


async def calm(kind: str, tokens: list[int], request: dict[str, Any]) -> list[dict[str, Any]]:
    """The events when nobody dies and tokens come one by one."""
    with edge_of(kind=kind) as edge:
        live = await edge.create(0, **request)
        rid = rid_of(live)
        for i, token in enumerate(tokens):
            last = i == len(tokens) - 1
            edge.take(edge.commit(rid, [token], finish_of(tokens, kind) if last else Finish.NONE, cached=3))
        edge.read(0)
        return unnamed(documents(live), live)


def unnamed(events: list[dict[str, Any]], live: LiveResponse) -> list[dict[str, Any]]:
    """Without what differs between two requests: ids and the time."""
    text = msgspec.json.encode(events).decode().replace(live.id, "ID")
    item = next((event["item"]["id"] for event in events if "item" in event), "none")
    created = str(msgspec.json.encode(live.stream.document().created_at), "ascii")
    return list(msgspec.json.decode(text.replace(item, "ITEM").replace(created, "0")))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_events_are_a_function_of_the_tokens(kind: str, data: st.DataObject) -> None:
    """However tokens are cut into rows, rows into messages, and whoever dies between them."""
    tokens, request = tokens_of(data, kind), data.draw(requests())

    async def body() -> None:
        expected = await calm(kind, tokens, request)
        with edge_of(kind=kind, frontends=2) as edge:
            live = await edge.create(0, **request)
            id, rid, at, done = live.id, rid_of(live), 0, 0
            seen: list[dict[str, Any]] = []
            for step in itertools.count():
                seen += documents(live, len(seen))
                if live.stream.finished_at(len(seen)):
                    break
                acts = ["step", "kill", "other", "tokenizer"]
                act = data.draw(st.sampled_from(acts)) if step < 30 else "step"
                if act == "step" and done < len(tokens):
                    size = data.draw(st.integers(1, 4))
                    some, done = tokens[done : done + size], done + size
                    finish = finish_of(tokens, kind) if done >= len(tokens) else Finish.NONE
                    row = edge.commit(rid, some, finish, cached=3)
                    if finish or data.draw(st.booleans()):
                        edge.take(row)
                elif act == "kill":
                    at = 0
                    await edge.kill(at)
                    live = await edge.find(at, id)
                elif act == "other":
                    at = 1
                    live = await edge.find(at, id)
                elif act == "tokenizer":
                    await edge.kill_tokenizer()
                edge.turn()
                edge.read(at)
            assert unnamed(seen, live) == expected

    trio.run(body)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_joined_behind_a_full_ring_are_told_apart_again(data: st.DataObject) -> None:
    tokens, request = tokens_of(data, "byte_level"), data.draw(requests())

    async def body() -> None:
        expected = await calm("byte_level", tokens, request)
        with edge_of() as edge:
            live = await edge.create(0, **request)
            backlog, rid = Backlog(1 << 16), rid_of(live)
            stream_rows: list[TextRow] = []
            for i, token in enumerate(tokens):
                last = finish_of(tokens, "byte_level") if i == len(tokens) - 1 else Finish.NONE
                for to, message in edge.core.take((edge.commit(rid, [token], last, cached=3),)):
                    if isinstance(message, Deltas):
                        assert to == "frontend.0"
                        stream_rows += message.rows
            for row in stream_rows:
                backlog.add(Deltas((row,)))
                if data.draw(st.booleans()):
                    edge._send([("frontend.0", backlog.take())])
            while backlog:
                edge._send([("frontend.0", backlog.take())])
            edge.read(0)
            assert unnamed(documents(live), live) == expected

    trio.run(body)


async def test_another_frontend_goes_on_while_the_first_is_alive() -> None:
    with edge_of(frontends=2) as edge:
        live = await edge.create(0, background=True)
        edge.take(edge.commit(rid_of(live), ids_of("ab"), cached=2))
        other = await edge.find(1, live.id)
        assert documents(other)[-1]["delta"] == "b" or documents(other)[-1]["delta"] == "ab"
        edge.take(edge.commit(rid_of(live), ids_of("c"), Finish.LENGTH))
        edge.read(0)
        edge.read(1)
        assert documents(other) == documents(live)
        usage = documents(other)[-1]["response"]["usage"]
        assert usage["input_tokens_details"]["cached_tokens"] == 2
        assert await edge.find(1, live.id) is other


async def test_a_finished_response_lingers_until_its_slot_is_needed() -> None:
    with edge_of(linger_seconds=1000.0) as edge:
        first = await edge.create(0, store=False)
        edge.take(edge.commit(rid_of(first), ids_of("ab"), Finish.LENGTH))
        edge.read(0)
        expected = documents(first)
        assert edge.ledger.open_rids() == []
        assert edge.ledger.open_rids(lingering=True) == [rid_of(first)]
        await edge.kill(0)
        again = await edge.find(0, first.id)
        assert documents(again) == expected and again is not first
        for _ in range(edge.ledger.layout.slots):
            await edge.create(0)
        with pytest.raises(UserError, match="no room"):
            await edge.create(0)
        await edge.kill(0)
        with pytest.raises(UserError, match="not found"):
            await edge.find(0, first.id)


async def test_what_finished_last_gives_way_last_whoever_died_since() -> None:
    """Its client is the likeliest not to have heard the end; the slot's number says nothing."""
    with edge_of(linger_seconds=1000.0) as edge:

        async def whole() -> LiveResponse:
            live = await edge.create(0, store=False)
            edge.take(edge.commit(rid_of(live), ids_of("ab"), Finish.LENGTH))
            edge.read(0)
            return live

        lives = [await whole() for _ in range(edge.ledger.layout.slots + 1)]
        assert slot_of(rid_of(lives[-1])) == slot_of(rid_of(lives[0])) == 0
        await edge.kill(0)
        await edge.create(0)
        await edge.find(0, lives[-1].id)
        with pytest.raises(UserError, match="not found"):
            await edge.find(0, lives[1].id)


async def test_lingering_has_an_end(autojump_clock: trio.testing.MockClock) -> None:
    with edge_of(linger_seconds=5.0) as edge:
        live = await edge.create(0)
        edge.take(edge.commit(rid_of(live), ids_of("ab"), Finish.LENGTH))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(edge.frontends[0].engine.slots.reap)
            edge.read(0)
            await trio.sleep(4.9)
            assert edge.ledger.open_rids(lingering=True)
            await trio.sleep(0.5)
            assert edge.ledger.open_rids(lingering=True) == []
            nursery.cancel_scope.cancel()


async def test_an_orphan_is_aborted_when_nobody_comes_back() -> None:
    with edge_of(orphan_seconds=0.05) as edge:
        live = await edge.create(0)
        rid = rid_of(live)
        await edge.kill(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(edge.frontends[0].engine.slots.reap)
            with trio.fail_after(PATIENCE):
                while Abort(rid) not in edge.down:
                    edge.turn()
                    await trio.sleep(0.01)
                edge.ledger.commit(rid, [], finish=Finish.ABORT)
                while edge.ledger.open_rids(lingering=True):
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_an_orphan_that_is_followed_elsewhere_goes_on(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ledger_slots, finder):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=trio.current_time))
    await trio.sleep(1000.0)  # as a machine's clock says when it has run for a while
    with edge_of(frontends=2, orphan_seconds=2.0) as edge:
        live = await edge.create(0)
        rid = rid_of(live)
        await edge.kill(0)
        other = await edge.find(1, live.id)
        reader = Reader(other, lambda events: None, lambda: True)
        other.follow(reader)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(edge.frontends[0].engine.slots.reap)
            nursery.start_soon(edge.frontends[1].finder.note)
            await trio.sleep(20.0)
            edge.turn()
            assert Abort(rid) not in edge.down
            other.leave(reader)
            with trio.fail_after(PATIENCE):
                while Abort(rid) not in edge.down:
                    edge.turn()
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        edge.read(1)
        assert other.stream.document().status == "cancelled"


async def test_a_background_orphan_ends_by_itself() -> None:
    with edge_of(orphan_seconds=0.0) as edge:
        live = await edge.create(0, background=True)
        await edge.kill(0)
        frontend = edge.frontends[0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(frontend.engine.slots.reap)
            await trio.sleep(0.3)
            edge.turn()
            assert Abort(rid_of(live)) not in edge.down
            nursery.cancel_scope.cancel()
        edge.take(edge.commit(rid_of(live), ids_of("done"), Finish.LENGTH))
        edge.read(0)
        kept = frontend.finder.store.get(live.id)
        assert kept is not None and kept.stream.document().output[0].content[0].text == "done"


async def test_an_adopted_response_is_cancelled_by_its_id_for_everybody() -> None:
    with edge_of(frontends=2) as edge:
        live = await edge.create(0, background=True)
        edge.take(edge.commit(rid_of(live), ids_of("ab")))
        other = await edge.find(1, live.id)
        other.cancel()
        assert other.stream.document().status == "cancelled"
        edge.turn()
        edge.read(0)
        assert live.stream.document().status == "cancelled"
        assert edge.down[-1] == Abort(rid_of(live))


async def test_an_adopted_response_can_be_continued() -> None:
    with edge_of() as edge:
        live = await edge.create(0, "one", instructions="Be brief.")
        edge.take(edge.commit(rid_of(live), ids_of("two"), Finish.LENGTH))
        await edge.kill(0)
        await edge.find(0, live.id)
        conversation = await edge.frontends[0].finder.conversation(live.id, "")
        assert conversation is not None
        assert [m["content"] for m in conversation.messages] == ["one", "two"]


async def test_a_long_conversation_does_not_survive_its_frontend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "KEPT_MESSAGES", 20)
    with edge_of() as edge:
        live = await edge.create(0, "one")
        edge.take(edge.commit(rid_of(live), ids_of("two"), Finish.LENGTH))
        await edge.kill(0)
        assert documents(await edge.find(0, live.id))[-1]["type"] == "response.incomplete"
        with pytest.raises(UserError) as caught:
            await edge.create(0, "more", previous_response_id=live.id)
        assert (caught.value.body.status, caught.value.body.code) == (400, "previous_response_not_found")


async def test_ids_cannot_be_guessed() -> None:
    with edge_of() as edge:
        live = await edge.create(0)
        rid = rid_of(live)
        assert live.id.startswith(f"resp_{rid:x}_")
        await edge.kill(0)
        wrong = ("x", f"resp_{rid:x}_", f"resp_{rid:x}_{'0' * 32}", f"resp_0_{live.id[-32:]}")
        for id in (*wrong, f"resp_{'f' * 16}_{'0' * 32}"):
            with pytest.raises(UserError) as caught:
                await edge.find(0, id)
            assert (caught.value.body.status, caught.value.body.code) == (404, "response_not_found")
        assert (await edge.find(0, live.id)).id == live.id


async def test_a_replay_of_what_is_gone_is_refused() -> None:
    with edge_of(frontends=2) as edge:
        live = await edge.create(0)
        other = await edge.find(1, live.id)
        edge.ledger.commit(rid_of(live), [], finish=Finish.ABORT)
        edge.ledger.free(rid_of(live))
        await edge.kill_tokenizer()
        edge.turn()
        edge.read(1)
        assert other.stream.document().status == "failed"
        assert other.generation.error is not None and other.generation.error.code == "response_not_found"


async def test_a_stop_string_is_found_again() -> None:
    with edge_of() as edge:
        live = await edge.create(0, stop=["b"])
        rid = rid_of(live)
        edge.take(edge.commit(rid, ids_of("a") + ids_of("b") + ids_of("c")))
        assert edge.down[-1] == StopHere(rid, 2)
        edge.read(0)
        expected = documents(live)
        await edge.kill(0)
        assert documents(await edge.find(0, live.id)) == expected


async def test_what_is_left_at_the_end_comes_with_the_last_token() -> None:
    with edge_of() as edge:
        live = await edge.create(0, include=["message.output_text.logprobs"])
        codec = codec_of("byte_level")
        size = codec.pieces.tokenizer.get_vocab_size()
        half = next(i for i in range(size) if codec.names[i][1] == "é".encode()[:1])
        edge.take(edge.commit(rid_of(live), ids_of("a")))
        edge.take(edge.commit(rid_of(live), [half], Finish.LENGTH))
        edge.read(0)
        expected = documents(live)
        deltas = [event for event in expected if event["type"] == "response.output_text.delta"]
        assert [event["delta"] for event in deltas] == ["a", "\ufffd"]
        assert all(len(event["logprobs"]) == 1 for event in deltas)
        await edge.kill(0)
        assert documents(await edge.find(0, live.id)) == expected


async def test_what_no_client_can_resume_is_aborted() -> None:
    with edge_of() as edge:
        rid = edge.ledger.claim(0)
        assert rid is not None and slot_of(rid) == 0
        await edge.kill(0)
        edge.turn()
        assert edge.down == [Abort(rid)]


async def test_a_replay_counts_for_nobody_else() -> None:
    """A follower's rows do not move the mark from which the first frontend is served after a death."""
    with edge_of(frontends=2) as edge:
        live = await edge.create(0, background=True)
        rid = rid_of(live)
        edge.take(edge.commit(rid, ids_of("a")))
        edge.commit(rid, ids_of("b"))
        edge._send(edge.core.replay(Replay(rid, 1)))
        assert edge.ledger.delivered(rid) == 1


async def test_slots_do_not_pile_up_however_often_a_frontend_dies() -> None:
    with edge_of(orphan_seconds=60.0) as edge:
        first = await edge.create(0)
        edge.take(edge.commit(rid_of(first), ids_of("ab"), Finish.LENGTH))
        edge.read(0)
        ended = edge.ledger.lingers(rid_of(first))
        assert ended > 0
        for _ in range(3):
            await edge.kill(0)
            assert edge.ledger.lingers(rid_of(first)) == ended, (
                "it lingers from its end, not from the last death"
            )
        second = await edge.create(0)
        edge.take(edge.commit(rid_of(second), ids_of("ab"), Finish.LENGTH))
        edge.read(0)
        await edge.kill(0)
        slots = edge.frontends[0].engine.slots
        assert slots.left_behind() == [rid_of(first), rid_of(second)]


async def test_a_response_is_found_by_its_key_alone_whoever_adopted_it() -> None:
    with edge_of(frontends=2, keys=("alice", "bob")) as edge:
        live = await edge.create(0, "one", key="alice")
        edge.take(edge.commit(rid_of(live), ids_of("two"), Finish.LENGTH))
        edge.read(0)

        async def strangers_find_nothing(index: int) -> None:
            for key in ("bob", ""):
                with pytest.raises(UserError) as caught:
                    await edge.find(index, live.id, key)
                assert (caught.value.body.status, caught.value.body.code) == (404, "response_not_found")
                with pytest.raises(UserError) as caught:
                    await edge.create(index, "more", key=key, previous_response_id=live.id)
                assert caught.value.body.code == "previous_response_not_found"

        await strangers_find_nothing(0)
        await edge.kill(0)
        await strangers_find_nothing(1)  # before anybody has adopted it
        assert (await edge.find(1, live.id, "alice")).stream.document().status == "incomplete"
        await strangers_find_nothing(1)
        assert (await edge.create(1, "more", key="alice", previous_response_id=live.id)).id != live.id


@pytest.mark.parametrize("told", [0, 2, 4])
async def test_what_a_dead_frontend_left_open_is_charged_to_its_key_once(told: int) -> None:
    """It keeps its place too, whoever follows it and however many frontends die. told: tokens that the
    dead one has heard of."""
    with edge_of(frontends=2, keys=("alice",)) as edge:
        live = await edge.create(0, "one", key="alice")
        rid = rid_of(live)
        prompt, tokens = len(edge.submits[rid].tokens) // 4, ids_of("abcdefgh")[:4]
        for token in tokens[:told]:
            edge.take(edge.commit(rid, [token]))
        edge.read(0)
        for _ in range(2):
            await edge.kill(0)
            assert edge.vault.used("alice")["running"] == 1
        await edge.find(1, live.id, "alice")
        for token in tokens[told:]:
            edge.take(edge.commit(rid, [token]))
        edge.ledger.commit(rid, [], finish=Finish.ABORT)
        edge.frontends[0].engine.slots.look(0.0)
        assert edge.vault.used("alice") == {"running": 0, "connected": 0, "spent": prompt + 4}
        await edge.kill(0)
        assert edge.vault.used("alice") == {"running": 0, "connected": 0, "spent": prompt + 4}
