"""Who may come in and how much they may take: keys, limits, reloading, origins, hosts."""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any

import pytest
import trio

from protocols.config import Config
from protocols.errors import StartError
from protocols.keys import digest_of
from protocols.request import Finish
from runtime.vault import load_keys
from tests.actors.frontend.harness import (
    CARD,
    Raw,
    Socket,
    World,
    ask,
    chat_body,
    look,
    world,
)

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
ORIGIN = "https://chat.example.com"


def bearer(key: str) -> str:
    return f"authorization: Bearer {key}"


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "keys.toml"


def write(file: pathlib.Path, *tables: str, limits: str = "") -> str:
    """A key file; each table is "name: field = value; ...", and its key is the name."""
    text = [f"[limits]\n{limits}\n"]
    for table in tables:
        name, _, fields = table.partition(":")
        text.append(f'[keys."{name}"]\nsha256 = "{digest_of(name)}"\n' + fields.replace(";", "\n"))
    file.write_text("\n".join(text))
    return str(file)


def reload(w: World) -> None:
    """As `actorctl keys reload`."""
    w.vault.publish(load_keys(w.context.config))


async def test_a_key_file_is_read_again_at_once(file: pathlib.Path) -> None:
    async with world(keys_file=write(file, "old"), api_keys=("given",)) as w:
        raw = await Raw.connect(w.port)
        for name, expected in (("old", 200), ("given", 200), ("new", 401)):
            await raw.get("/v1/models", bearer(name))
            assert (await raw.answer()).status == expected
        write(file, "new")
        reload(w)
        for name, expected in (("old", 401), ("given", 200), ("new", 200)):
            await raw.get("/v1/models", bearer(name))
            assert (await raw.answer()).status == expected
        write(file)
        reload(w)
        await raw.get("/v1/models", bearer("new"))
        assert (await raw.answer()).status == 401
        await raw.aclose()


async def test_the_socket_of_a_key_that_is_gone_takes_no_more(file: pathlib.Path) -> None:
    async with world(keys_file=write(file, "a", "b")) as w:
        gone, stays = await Socket.connect(w.port, bearer("a")), await Socket.connect(w.port, bearer("b"))
        await gone.create()
        assert (await gone.events())[-1]["type"] == "response.completed"
        write(file, "b")
        reload(w)
        await gone.create()
        (error,) = await gone.events()
        assert (error["status"], error["error"]["code"]) == (401, "invalid_api_key")
        assert await gone.close_code() == 1008
        await stays.create()
        assert (await stays.events())[-1]["type"] == "response.completed"
        await gone.aclose()
        await stays.aclose()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[keys.a]\n", "64 hexadecimal digits"),
        (f'[keys."a b"]\nsha256 = "{digest_of("a")}"', "is no name"),
        ("[keys.a]\nsha256 = 5", "Expected `str`"),
        ("[limits]\nconcurency = 1", "concurency"),
        ("[limits]\nconcurrency = -1", "between 0"),
        ("keys = 5", "Expected `object`"),
        ("[keys", "wrong"),
        ('[keys.a]\nsha256 = "{0}"\n[keys.b]\nsha256 = "{0}"'.format(digest_of("a")), "under two names"),
        ("\n".join(f'[keys.k{i}]\nsha256 = "{digest_of(str(i))}"' for i in range(1025)), "1024 at most"),
        ("#" * (512 * 1024 + 1), "longer than"),
        ("\udcff", "not UTF-8"),
    ],
)
async def test_a_wrong_key_file_is_a_sentence(file: pathlib.Path, text: str, sentence: str) -> None:
    async with world(keys_file=write(file, "a")) as w:
        file.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(StartError, match=sentence):
            reload(w)
        assert (await look(w.port, "/v1/models", bearer("a"))).status == 200
        file.unlink()
        with pytest.raises(StartError, match="cannot read"):
            reload(w)
        with pytest.raises(StartError, match="not a file"):
            load_keys(w.context.config.__class__(w.context.config.model, keys_file="/dev/zero"))


def test_a_directory_for_a_key_file_costs_no_descriptor(tmp_path: pathlib.Path) -> None:
    config = Config(CARD, keys_file=str(tmp_path))
    with pytest.raises(StartError, match="directory"):
        load_keys(config)
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            assert os.readlink(f"/proc/self/fd/{descriptor}") != str(tmp_path)


async def test_concurrency_is_of_the_key_and_choices_count(file: pathlib.Path) -> None:
    async with world(keys_file=write(file, "a:concurrency = 3", "b:concurrency = 3", "free")) as w:
        held, asked = await w.begin(CHAT, chat_body(n=2), bearer("a"))
        rids = asked.rids
        answer = await ask(w.port, CHAT, chat_body(n=2), bearer("a"))
        assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-ratelimit-limit-concurrency"] == "3"
        assert answer.headers["x-ratelimit-remaining-concurrency"] == "1"
        answer = await ask(w.port, CHAT, chat_body(n=4), bearer("a"))
        assert (answer.status, answer.error["param"]) == (400, "n")
        socket = await Socket.connect(w.port, bearer("a"))
        await socket.create()
        await socket.create(stream_id="x")
        (error,) = [(await socket.events())[-1]]
        assert (error["status"], error["error"]["type"]) == (429, "rate_limit_error")
        assert w.open_slots() == 3
        await socket.aclose()
        await w.engine.until(lambda: len(w.engine.aborted) == 1)
        for key in ("b", "free"):
            other = await Raw.connect(w.port)
            await other.post(CHAT, chat_body(n=3), bearer(key))
            await w.engine.next()
            await other.aclose()
        for rid in rids:
            await w.engine.say(rid, "done", finish=Finish.STOP)
        assert (await held.answer()).headers["x-ratelimit-remaining-concurrency"] == "3"
        await held.aclose()
        await w.all_free()


async def test_tokens_a_minute(file: pathlib.Path) -> None:
    async with world(keys_file=write(file, "a", "b", limits="tokens_per_minute = 10")) as w:
        first = await ask(w.port, CHAT, chat_body(), bearer("a"))
        assert first.status == 200
        used = first.json["usage"]["total_tokens"]
        assert first.headers["x-ratelimit-limit-tokens"] == "10"
        while (answer := await ask(w.port, CHAT, chat_body(), bearer("a"))).status == 200:
            used += answer.json["usage"]["total_tokens"]
        assert 10 <= used < 10 + 2 * first.json["usage"]["total_tokens"]
        assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")
        assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert (await ask(w.port, CHAT, chat_body(), bearer("b"))).status == 200
        assert w.vault.used("a")["spent"] == used


async def test_sockets_and_lanes(file: pathlib.Path) -> None:
    async with world(keys_file=write(file, "a:sockets = 1; lanes = 2".replace(";", "\n"))) as w:
        socket = await Socket.connect(w.port, bearer("a"))
        raw = await Raw.connect(w.port)
        upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13")
        key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="
        await raw.get(RESPONSES, *upgrade, key, bearer("a"))
        answer = await raw.answer()
        assert (answer.status, answer.error["code"]) == (429, "websocket_connection_limit_reached")
        for lane in ("one", "two", "one"):
            await socket.create(stream_id=lane)
            assert (await socket.events())[-1]["type"] == "response.completed"
        await socket.create(stream_id="three")
        assert (await socket.events())[-1]["error"]["code"] == "websocket_stream_limit_reached"
        await socket.aclose()
        while w.vault.used("a")["connected"]:
            await trio.sleep(0.001)
        await raw.get(RESPONSES, *upgrade, key, bearer("a"))
        assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        await raw.aclose()


async def test_a_private_cache_has_salts_of_its_own(file: pathlib.Path) -> None:
    names = write(file, "a:private_cache = true", "b:private_cache = true", "c")
    async with world(keys_file=names) as w:
        for key in ("a", "b", "c", "a"):
            assert (await ask(w.port, CHAT, chat_body(), bearer(key))).status == 200
        assert (await ask(w.port, CHAT, chat_body(cache_salt="x"), bearer("a"))).status == 200
        a, b, c, again, salted = (generate.salt for generate in w.engine.generates)
        assert len({a, b, c, salted}) == 4 and a == again and c == ""


async def test_administrators_have_keys_and_routes_apart(file: pathlib.Path) -> None:
    async with world(keys_file=write(file, "boss:admin = true", "a:concurrency = 5"), hosts=("x",)) as w:
        for headers, expected in (
            ([], 401),
            ([bearer("a")], 403),
            ([bearer("boss")], 200),
            ([bearer("boss"), "origin: http://x"], 403),
            ([bearer("boss"), f"origin: {ORIGIN}"], 403),
        ):
            assert (await look(w.port, "/admin/keys", *headers)).status == expected
        assert (await look(w.port, "/v1/models", bearer("boss"))).status == 403
        document = (await look(w.port, "/admin/keys", bearer("boss"))).json
        assert [key["name"] for key in document["data"]] == ["boss", "a"]
        assert digest_of("boss") not in str(document)
        raw, boss = await Raw.connect(w.port), bearer("boss")
        for host, expected in (
            ("evil.example:80", 403),
            ("localhost:1", 200),
            ("[::1]:1", 200),
            ("10.0.0.1", 200),
        ):
            await raw.send(f"GET /admin/keys HTTP/1.1\r\nhost: {host}\r\n{boss}\r\n\r\n".encode())
            assert (await raw.answer()).status == expected, host
        await raw.aclose()
    async with world(hosts=("x",)) as w:
        assert (await look(w.port, "/admin/keys")).status == 401


async def test_strange_pages_may_not_ask() -> None:
    async with world() as w:
        for origin in (ORIGIN, "null", "http://x:80", "http://localhost:3000"):
            answer = await ask(w.port, CHAT, chat_body(), f"origin: {origin}")
            assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
            assert not [name for name in answer.headers if name.startswith("access-control")]
        raw = await Raw.connect(w.port)
        upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13")
        await raw.get(RESPONSES, *upgrade, "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", f"origin: {ORIGIN}")
        assert (await raw.answer()).status == 403
        for host, expected in ((f"127.0.0.1:{w.port}", 200), ("rebound.example", 403)):
            await raw.send(
                f"GET /v1/models HTTP/1.1\r\nhost: {host}\r\norigin: http://{host}\r\n\r\n".encode()
            )
            assert (await raw.answer()).status == expected
        await raw.aclose()
        assert w.engine.generates == []


async def test_pages_on_the_list_may_ask_and_read() -> None:
    async with world(origins=(ORIGIN,), hosts=("api.example.com",)) as w:
        preflight = (
            "access-control-request-method: POST",
            "access-control-request-headers: content-type, x-a",
        )
        raw = await Raw.connect(w.port)

        async def send(origin: str, method: str, path: str, *headers: str) -> Any:
            lines = [f"{method} {path} HTTP/1.1", "host: api.example.com", f"origin: {origin}", *headers]
            await raw.send(("\r\n".join(lines) + "\r\n\r\n").encode())
            return await raw.answer()

        answer = await send(ORIGIN, "OPTIONS", CHAT, *preflight)
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-methods"] == "POST"
        assert answer.headers["access-control-allow-headers"] == "content-type, x-a"
        answer = await send(ORIGIN, "GET", "/v1/models")
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["vary"] == "origin"
        for other in (f"{ORIGIN}.evil.com", ORIGIN.upper(), f"{ORIGIN}:444", "https://example.com"):
            answer = await send(other, "OPTIONS", CHAT, *preflight)
            assert answer.status == 403 and "access-control-allow-origin" not in answer.headers
        await raw.aclose()


async def test_a_preflight_needs_no_key() -> None:
    async with world(origins=(ORIGIN,), api_keys=("k",)) as w:
        asks = (f"origin: {ORIGIN}", "access-control-request-method: POST")
        assert (await look(w.port, CHAT, *asks, method="OPTIONS")).status == 204
        answer = await look(w.port, "/v1/models", f"origin: {ORIGIN}")
        assert answer.status == 401 and answer.headers["access-control-allow-origin"] == ORIGIN
        assert (await look(w.port, "/admin/keys", *asks, method="OPTIONS")).status == 403


async def test_a_request_that_waits_too_long_is_refused() -> None:
    async with world(queue_seconds=0.2) as w:
        w.engine.manual = True
        for stream in (False, True):
            answer = await ask(w.port, CHAT, chat_body(stream=stream))
            assert (answer.status, answer.error["code"]) == (503, "server_overloaded")
            assert answer.headers["retry-after"] == "1"
        answer = await ask(w.port, RESPONSES, {"model": "tiny", "input": "one"})
        assert answer.status == 503
        await w.all_free()


async def test_a_response_is_there_only_for_the_key_that_made_it(file: pathlib.Path) -> None:
    async with world(keys_file=write(file, "a", "b")) as w:
        id = (await ask(w.port, RESPONSES, {"model": "tiny", "input": "one two"}, bearer("a"))).json["id"]
        unknown = f"resp_0_{'0' * 32}"
        paths = (("GET", ""), ("GET", "?stream=true"), ("GET", "/input_items"), ("POST", "/cancel"))
        for method, tail in (*paths, ("DELETE", "")):
            found = await look(w.port, f"{RESPONSES}/{id}{tail}", bearer("b"), method=method)
            nothing = await look(w.port, f"{RESPONSES}/{unknown}{tail}", bearer("b"), method=method)
            assert found.status == nothing.status == 404, (method, tail)
            assert found.body.replace(id.encode(), b"ID") == nothing.body.replace(unknown.encode(), b"ID")
        more = {"model": "tiny", "input": "three", "previous_response_id": id}
        answer = await ask(w.port, RESPONSES, more, bearer("b"))
        assert (answer.status, answer.error["code"]) == (400, "previous_response_not_found")
        stranger = await Socket.connect(w.port, bearer("b"))
        await stranger.send({"type": "response.resume", "response_id": id})
        assert (await stranger.event())["error"]["code"] == "response_not_found"
        await stranger.send({"type": "response.cancel", "response_id": id})
        assert (await stranger.event())["error"]["code"] == "response_not_found"
        await stranger.create("three", previous_response_id=id)
        assert (await stranger.event())["error"]["code"] == "previous_response_not_found"
        await stranger.aclose()
        assert (await ask(w.port, RESPONSES, more, bearer("a"))).status == 200
        owner = await Socket.connect(w.port, bearer("a"))
        await owner.send({"type": "response.resume", "response_id": id})
        assert (await owner.events())[-1]["type"] == "response.completed"
        await owner.aclose()
        for method, tail in (*paths, ("DELETE", "")):
            answer = await look(
                w.port, f"{RESPONSES}/{id}{tail.partition('?')[0]}", bearer("a"), method=method
            )
            assert answer.status == 200, (method, tail)
