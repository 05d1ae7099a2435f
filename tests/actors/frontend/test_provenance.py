"""What an answer tells of how it came about: its place in a trace, and the weights that made it."""

from __future__ import annotations

import json
import re
from typing import Any

from protocols.messages import TextRow
from protocols.request import Finish, Usage
from tests.actors.frontend.harness import Raw, Socket, World, ask, world

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
TRACE, OTHER = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"
CALLER = "00f067aa0ba902b7"


def header(trace: str, sampled: int = 1) -> str:
    return f"00-{trace}-{CALLER}-{sampled:02}"


def is_below(told: str, trace: str, sampled: int = 1) -> bool:
    """Whether a span is another one of this trace."""
    return bool(re.fullmatch(f"00-{trace}-(?!{CALLER})[0-9a-f]{{16}}-{sampled:02}", told))


async def test_every_response_of_a_socket_tells_its_own_span() -> None:
    async with world() as w:
        socket = await Socket.connect(w.port, f"traceparent: {header(TRACE)}")
        seen = []
        for named in (None, None, header(OTHER, 0), "nonsense"):
            await socket.create(**({"traceparent": named} if named else {}))
            events = await socket.events()
            told = {event["response"]["traceparent"] for event in events if "response" in event}
            assert len(told) == 1, "the first event tells what the last one does"
            seen += told
            assert w.engine.generates[-1].trace == seen[-1]
        assert is_below(seen[0], TRACE) and is_below(seen[1], TRACE) and seen[0] != seen[1]
        assert is_below(seen[2], OTHER, 0)
        assert not seen[3].startswith(f"00-{TRACE}"), "what is no traceparent counts as none"
        await socket.aclose()


async def test_over_http_header_and_document_agree() -> None:
    async with world() as w:
        body = {"model": "tiny", "input": "one two"}
        for fields, headers in (
            ({}, [f"traceparent: {header(TRACE)}"]),
            ({"traceparent": header(TRACE)}, []),
        ):
            answer = await ask(w.port, RESPONSES, {**body, **fields}, *headers)
            assert is_below(answer.headers["traceparent"], TRACE)
            assert answer.json["traceparent"] == answer.headers["traceparent"]
            kept = await Raw.connect(w.port)
            await kept.get(f"{RESPONSES}/{answer.json['id']}")
            assert (await kept.answer()).json["traceparent"] == answer.json["traceparent"]
            await kept.aclose()


async def _message(w: World, raw: Raw, **fields: Any) -> None:
    """Ask for a message that two versions make."""
    body = {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], **fields}
    await raw.post(MESSAGES, body)
    (rid,) = (await w.engine.next()).rids
    w.ledger.commit(rid, [1, 2], finish=Finish.STOP)
    usage = Usage(7, 2, 0, weights=("old", "new"))
    await w.engine.send(TextRow(rid, 0, "one", 1), TextRow(rid, 3, " two", 2, Finish.STOP, usage=usage))


async def test_messages_tell_which_weights_made_them() -> None:
    async with world() as w:
        w.engine.manual = True
        raw = await Raw.connect(w.port)
        await _message(w, raw)
        assert (await raw.answer()).json["weight_versions"] == ["old", "new"]
        await _message(w, raw, stream=True)
        text = (await raw.until(b"message_stop")).decode()
        (delta,) = [json.loads(line[6:]) for line in text.splitlines() if '"message_delta"' in line]
        assert delta["weight_versions"] == ["old", "new"]
        await raw.aclose()
