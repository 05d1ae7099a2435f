"""Bodies that are legal HTTP and mean harm: JSON, limits, combinations, templates; over HTTP and
WebSocket."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import signal
import socket
import threading
import time
from typing import Any

import pytest

from tests.faults.attacks.siege import (
    CHAT,
    COMPLETIONS,
    PATIENCE,
    RESPONSES,
    Neighbour,
    WebClient,
    besieged,
    completion,
    post,
)
from tests.serving import Company, serving
from tools.actorctl.serve import DEMO_MODEL

DEEP = 100_000
BODIES = {
    "nothing": b"",
    "no JSON": b"hello",
    "pickle": b"\x80\x04\x95\x1a\x00\x00\x00.",
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "an overlong character": b'{"prompt": "\xc0\x80"}',
    "a mark before it": b"\xef\xbb\xbf{}",
    "something after it": b"{} {}",
    "cut off": b'{"prompt": "a',
    "a list": b"[]",
    "null": b"null",
    "deep lists": b'{"prompt":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"metadata":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "deep and unclosed": b"[" * 4_000_000,
    "deep in a free field": b'{"prompt":"a","logit_bias":' + b'{"1":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "a number of 100,000 digits": b'{"prompt":"a","max_tokens":' + b"9" * DEEP + b"}",
    "a fraction of 100,000 digits": b'{"prompt":"a","temperature":0.' + b"9" * DEEP + b"e9}",
    "too great a number": b'{"prompt":"a","temperature":1e999}',
    "NaN": b'{"prompt":"a","temperature":NaN}',
    "Infinity": b'{"prompt":"a","top_p":-Infinity}',
    "NUL": b'{"prompt":"a\x00"}',
}

MANY = {str(i): 1 for i in range(5000)}
FIELDS: dict[str, tuple[Any, ...]] = {
    "n": (10**9, 2**63, 2**64, -1, 0, 1.5, "1", True, 129),
    "max_tokens": (-1, 2**31, 2**63, 1e300, "x", 10**7),
    "min_tokens": (-1, 2**63, 10**7),
    "temperature": (-1, 1e300, "hot", 101),
    "top_p": (-0.1, 1.1, 0, "x"),
    "top_k": (-2, 2**63, 1.5),
    "min_p": (-0.1, 1.5),
    "presence_penalty": (-3, 3, 1e300),
    "repetition_penalty": (0, -1, 1e9),
    "seed": (-(2**63) - 1, 2**63, 2**64, "x"),
    "stop": ([""], ["a"] * 17, ["a"] * 1_000_000, "x" * 2000, [1], {}),
    "stop_token_ids": ([-1], [2**31], list(range(1000)), ["a"], [10**6]),
    "logit_bias": ({"-1": 1}, {"999999999": 1}, {"x": 1}, {"1": 1e9}, {"1": "a"}, MANY),
    "logprobs": (-1, 21, 2**63),
    "prompt": ("", [], [[]], [-1], [2**31], [10**6], [1.5], "x " * 50_000, [1] * 100_000, {}, 5),
    "cache_salt": ("x" * 257, 5),
    "priority": (2**31, -(2**63)),
    "bad_words": (["x"],),
    "allowed_token_ids": ([-1], [10**9]),
    "model": ("../../etc/passwd", "/etc/passwd", "other", "a\x00b", 5),
    "lora_path": ("/etc/passwd",),
    "chat_template": ("{% for i in range(10**9) %}{% endfor %}",),
}  # fmt: skip


def test_bodies(company: Company) -> None:
    with besieged(company):
        for (name, body), path in itertools.product(BODIES.items(), (COMPLETIONS, CHAT, RESPONSES)):
            status, document = post(company, path, body)
            assert status == 400, (name, path, status, document)
            assert set(document["error"]) == {"message", "type", "param", "code"}
            assert len(document["error"]["message"]) < 500


@pytest.mark.parametrize("field", FIELDS)
def test_values_out_of_range(company: Company, field: str) -> None:
    for value in FIELDS[field]:
        status, document = post(company, COMPLETIONS, completion(company, **{field: value}))
        assert status in (400, 404, 413), (field, str(value)[:50], status, document)


COMBINED: dict[str, tuple[Any, ...]] = {
    "stream": (True,),
    "n": (2,),
    "echo": (True,),
    "logprobs": (0, 3),
    "temperature": (0, 2),
    "top_k": (1, -1),
    "top_p": (0.01,),
    "min_tokens": (1, 2),
    "seed": (0, 2**63 - 1),
    "stop": ("a", ["b", "c"]),
    "logit_bias": ({"5": 100}, {"5": -100}),
    "frequency_penalty": (2, -2),
    "repetition_penalty": (0.001, 1000),
    "ignore_eos": (True,),
    "return_token_ids": (True,),
    "cache_salt": ("s",),
}


def test_every_pair_of_fields(company: Company) -> None:
    """Each is answered, or refused for a reason; none is a bug."""
    with besieged(company):
        for one, two in itertools.combinations(COMBINED, 2):
            for a, b in itertools.product(COMBINED[one][:1], COMBINED[two][-1:]):
                fields = {one: a, two: b, "max_tokens": 2}
                if fields.pop("stream", False):
                    continue
                status, document = post(company, COMPLETIONS, completion(company, **fields))
                assert status in (200, 400), (fields, status, document)


def test_events(company: Company) -> None:
    """The same bodies as events of a WebSocket: each is an error event, and the socket goes on."""
    with besieged(company), WebClient(company) as web:
        for name, body in BODIES.items():
            if name in ("not UTF-8", "an overlong character", "pickle"):
                continue
            web.send(body)
            event = web.event()
            assert (event["type"], event["status"]) == ("error", 400), (name, event)
        for event in (
            {"type": "response.create"},
            {"type": "response.create", "input": "a", "stream_id": "a b"},
            {"type": "response.create", "input": "a", "stream_id": 5},
            {"type": "response.create", "input": "a", "previous_response_id": "resp_x"},
            {"type": "response.create", "input": [{"type": "message", "role": "x", "content": []}]},
            {"type": "response.resume", "response_id": "resp_0_0", "starting_after": -(2**63)},
            {"type": "response.resume", "response_id": "../../x"},
            {"type": "response.cancel", "response_id": "resp_0"},
            {"type": "x" * 100_000},
        ):
            web.send(event)
            answer = web.event()
            assert answer["type"] == "error" and answer["status"] in (400, 404), (event, answer)
        web.send(
            {"type": "response.create", "model": company.model, "input": "still", "max_output_tokens": 2}
        )
        while (event := web.event())["type"] not in ("response.completed", "response.incomplete"):
            assert event["type"].startswith("response."), event


def test_broken_text_closes_the_socket(company: Company) -> None:
    with besieged(company):
        for body in (b"\xff", b'{"type":"\xc0\x80"}'):
            with WebClient(company) as web:
                web.send(body)
                assert web.event() == 1007


def test_deflate_is_not_negotiated(company: Company) -> None:
    with besieged(company):
        offers = b"sec-websocket-extensions: permessage-deflate; client_max_window_bits"
        with WebClient(company, offers) as web:
            assert b"xtensions" not in web.head
            web.sock.sendall(b"\xc1\x84\0\0\0\0bomb")
            assert web.event() == 1002


def test_floods_of_events_that_nobody_reads(company: Company) -> None:
    """Pings, errors and requests by the ten thousand: the reader is cut off or slowed down, never fed."""
    many = {
        "pings": b"\x89\x80\0\0\0\0" * 60_000,
        "errors": b"\x81\x82\0\0\0\0{}" * 30_000,
        "fragments": b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 60_000,
    }
    with besieged(company):
        for data in many.values():
            with WebClient(company) as web:
                web.sock.settimeout(1.0)
                try:
                    web.sock.sendall(data)
                except OSError:
                    continue


def test_websocket_streams_that_nobody_reads(company: Company) -> None:
    """The server cuts them off, and frees what they hold."""
    create = {
        "type": "response.create",
        "model": company.model,
        "input": "a",
        "max_output_tokens": 1500,
        "ignore_eos": True,
        "top_logprobs": 5,
    }
    with besieged(company), contextlib.ExitStack() as stack:
        webs = [stack.enter_context(WebClient(company)) for _ in range(2)]
        for web in webs:
            web.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for lane in range(4):
                web.send({**create, "stream_id": f"lane{lane}"})
        for count in (2, 0):
            deadline = time.monotonic() + PATIENCE
            while company.actor("frontend.0")["websockets"] != count:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_too_many_requests_on_one_socket(company: Company) -> None:
    with besieged(company), WebClient(company) as web:
        create = {"type": "response.create", "model": company.model, "input": "a", "max_output_tokens": 200}
        for i in range(200):
            web.send({**create, "stream_id": f"lane{i % 40}"})
        codes = set()
        while len(codes) < 2:
            event = web.event()
            if event["type"] == "error":
                codes.add(event["error"]["code"])
        assert codes == {"websocket_stream_limit_reached", "rate_limit_exceeded"}


def _stopped_in_a_grammar(company: Company, tokenizer: int) -> None:
    """The process that reads grammars stops in the middle of one."""
    found: list[tuple[int, Any]] = []

    def shaped(regex: str) -> tuple[int, Any]:
        return post(company, COMPLETIONS, completion(company, regex=regex, max_tokens=3, ignore_eos=False))

    assert shaped("a{9}")[0] == 200
    children = pathlib.Path(f"/proc/{tokenizer}/task/{tokenizer}/children").read_text().split()
    names = {pathlib.Path(f"/proc/{pid}/comm").read_text().strip(): int(pid) for pid in children}
    os.kill(names["grammar_helper"], signal.SIGSTOP)
    hung = threading.Thread(target=lambda: found.append(shaped("b{9}")))
    with Neighbour(company).streaming():
        hung.start()
        assert shaped("a{9}")[0] == post(company, COMPLETIONS, completion(company))[0] == 200
        hung.join()
    ((status, document),) = found
    assert status == 400 and "to read it took more than 3 s" in document["error"]["message"]
    assert shaped("b{9}")[0] == 200


LOOPS = """{%- for message in messages -%}{%- if 'loop' in message.content -%}
{%- for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor -%}
{%- endif -%}{{ message.content }}{%- endfor -%}"""


def test_a_template_and_a_grammar_that_never_end(tmp_path: pathlib.Path) -> None:
    """They cost their own requests; other chats, completions, grammars and streams go on."""
    model = tmp_path / "model"
    model.mkdir()
    for file in DEMO_MODEL.iterdir():
        if file.name != "chat_template.jinja":
            (model / file.name).symlink_to(file)
    (model / "chat_template.jinja").write_text(LOOPS)
    seconds = ("--template-seconds", "3", "--grammar-seconds", "3")
    with serving("--executor", "hash", *seconds, model=str(model)) as company:
        pids = company.pids()
        found: list[tuple[int, Any]] = []

        def chat(text: str) -> tuple[int, Any]:
            message = {"role": "user", "content": text}
            return post(company, CHAT, {"model": company.model, "messages": [message], "max_tokens": 3})

        threads = [threading.Thread(target=lambda: found.append(chat("loop"))) for _ in range(3)]
        with Neighbour(company).streaming():
            for thread in threads:
                thread.start()
            status, _ = chat("hello")
            assert status == 200
            for thread in threads:
                thread.join()
        assert [status for status, _ in found] == [400] * 3
        assert all("within 3 s" in document["error"]["message"] for _, document in found)
        _stopped_in_a_grammar(company, pids["tokenizer.0"])
        assert company.pids() == pids
        assert json.dumps(found).count("/") == 0
