"""Random damage to good requests and events: never a 5xx but 501, 503 and 505, never a crash.

TROUPE_FUZZ=1000000 pytest tests/faults/attacks/test_fuzz.py plays as many of each as it says.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.attacks.siege import CHAT, COMPLETIONS, RESPONSES, UPGRADE, besieged, connect, text_frame
from tests.serving import Company

EXAMPLES = int(os.environ.get("TROUPE_FUZZ", "150"))
BODIES = (
    {"prompt": "a b c", "max_tokens": 2, "n": 2, "stop": ["x"], "logit_bias": {"5": 1}, "stream": True},
    {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0.5, "tools": []},
    {"input": [{"type": "message", "role": "user", "content": "hi"}], "max_output_tokens": 2, "store": False},
)
PATHS = (COMPLETIONS, CHAT, RESPONSES)
EVENTS = (
    {"type": "response.create", "input": "a", "max_output_tokens": 2, "stream_id": "x"},
    {"type": "response.resume", "response_id": "resp_1_2", "starting_after": 3},
    {"type": "response.cancel", "response_id": "resp_1_2"},
    {"type": "response.steer", "previous_response_id": "resp_1_2", "input": "b"},
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
damages = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=6)), max_size=4
)  # place, bytes removed, bytes put there
campaign = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def damaged(data: bytes, damage: list[tuple[int, int, bytes]]) -> bytes:
    """The bytes with some replaced."""
    for place, gone, new in damage:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + gone :]
    return data


def exchanged(company: Company, data: bytes) -> bytes:
    """Everything that comes when `data` is all that there will be."""
    answer = bytearray()
    with connect(company) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while piece := sock.recv(65536):
            answer += piece
    return bytes(answer)


def test_http(company: Company) -> None:
    @campaign
    @given(st.integers(0, 2), st.dictionaries(st.text(max_size=6), values, max_size=2), st.data(), damages)
    def play(
        which: int, more: dict[str, object], data: st.DataObject, damage: list[tuple[int, int, bytes]]
    ) -> None:
        body = dict(BODIES[which])
        body[data.draw(st.sampled_from(sorted(body)))] = data.draw(values)
        text = json.dumps({"model": company.model, **body, **more}).encode()
        head = f"POST {PATHS[which]} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(text)}\r\n\r\n"
        answer = exchanged(company, damaged(head.encode() + text, damage))
        statuses = re.findall(rb"HTTP/1\.1 (\d+)", answer)
        assert all(status < b"500" or status in (b"501", b"503", b"505") for status in statuses), answer

    with besieged(company):
        play()


def test_websocket(company: Company) -> None:
    @campaign
    @given(st.sampled_from(EVENTS), st.data(), damages, damages)
    def play(
        event: dict[str, object],
        data: st.DataObject,
        inside: list[tuple[int, int, bytes]],
        outside: list[tuple[int, int, bytes]],
    ) -> None:
        changed = {
            "model": company.model,
            **event,
            data.draw(st.sampled_from(sorted(event))): data.draw(values),
        }
        frames = damaged(text_frame(damaged(json.dumps(changed).encode(), inside)), outside)
        answer = exchanged(company, UPGRADE + b"\r\n" + frames)
        assert answer.startswith(b"HTTP/1.1 101 ") or not answer
        assert b'"status":500' not in answer and b"internal_error" not in answer, answer

    with besieged(company):
        play()
