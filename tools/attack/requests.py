"""Fuzzed HTTP requests: good framing around any body and head, or any framing at all. Sans-I/O."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping
from typing import Any

from tools.attack.grammar import damaged, text_of, varied

_MESSAGES = [{"role": "user", "content": "hi"}]
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BODIES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "/v1/chat/completions": (
        {"messages": _MESSAGES, "max_tokens": 2},
        {"messages": _MESSAGES, "max_tokens": 3, "stream": True, "n": 2, "logprobs": True, "top_logprobs": 1},
        {"messages": _MESSAGES, "max_tokens": 3, "tools": [_TOOL], "tool_choice": "auto"},
        {"messages": _MESSAGES, "max_tokens": 4, "response_format": {"type": "json_object"}},
    ),
    "/v1/completions": (
        {"prompt": "a b", "max_tokens": 2, "stop": ["x"], "logit_bias": {"5": 1}, "echo": True},
        {"prompt": [1, 2, 3], "max_tokens": 2, "stream": True, "best_of": 1, "seed": 3},
        {"prompt": ["a", "b"], "max_tokens": 2, "regex": "[ab]+"},
    ),
    "/v1/responses": (
        {"input": "hi", "max_output_tokens": 2, "store": False},
        {
            "input": [{"type": "message", "role": "user", "content": "hi"}],
            "max_output_tokens": 2,
            "stream": True,
        },
        {"input": "hi", "max_output_tokens": 2, "background": True, "text": {"format": {"type": "text"}}},
    ),
    "/v1/embeddings": ({"input": "a b", "encoding_format": "float"}, {"input": [[1, 2]], "dimensions": 4}),
    "/v1/messages": ({"messages": _MESSAGES, "max_tokens": 2, "system": "s", "stop_sequences": ["x"]},),
    "/v1/messages/count_tokens": ({"messages": _MESSAGES},),
    "/generate": (
        {"text": "a", "sampling_params": {"max_new_tokens": 2, "stop": "x"}, "return_logprob": True},
    ),
    "/tokenize": ({"prompt": "a b"}, {"messages": _MESSAGES}),
    "/detokenize": ({"tokens": [1, 2, 3]},),
}
_OTHERS = (
    "/", "/health", "/version", "/openapi.json", "/v1/models", "/v1/models/x", "/v1/responses/resp_0_0",
    "/v1/responses/resp_0_" + "0" * 32, "/v1/responses/x/cancel", "/admin/keys", "/nowhere", "/v1/responses",
    "/v1/responses/x/input_items?limit=5", "/v1/responses/x?stream=true&starting_after=-9",
)  # fmt: skip
_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "TRACE", "get", "G\x00T")
_HEADERS = (
    b"x-request-id: forged", b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
    b"traceparent: \xff", b"authorization: Bearer x", b"authorization: ", b"cookie: " + b"c" * 4000,
    b"origin: https://evil.example", b"expect: 100-continue", b"connection: close",
    b"connection: keep-alive, upgrade", b"upgrade: websocket", b"accept-encoding: gzip",
    b"content-encoding: gzip", b"content-type: multipart/form-data", b"x: \x01", b"x-api-key: \x80",
    b"te: trailers", b"transfer-encoding: chunked", b"transfer-encoding: gzip", b"content-length: 5",
    b"content-length: -1", b"content-length: 99999999999999999999", b"host: a", b": x",
    b"sec-websocket-version: 13", b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", b"range: bytes=0-1",
    b"bad",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Request:
    """One case. whole: its framing is right, so that exactly one answer comes and the connection goes on."""

    data: bytes
    whole: bool
    head_only: bool = False


def request(rng: random.Random, model: str) -> Request:
    """The next case."""
    kind = rng.randrange(10)
    if kind < 6:
        return _posted(rng, model)
    if kind == 6:
        method = rng.choice(("GET", "HEAD", "DELETE", "OPTIONS", "PUT"))
        line = f"{method} {rng.choice(_OTHERS)} HTTP/1.1\r\nhost: localhost\r\n\r\n"
        return Request(line.encode(), True, head_only=method == "HEAD")
    return Request(_broken(rng, model), False)


def _posted(rng: random.Random, model: str) -> Request:
    """A POST whose framing is right, by length or in chunks."""
    path = rng.choice(tuple(BODIES))
    body = text_of(rng, varied(rng, {"model": model, **rng.choice(BODIES[path])}))
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
    if rng.random() < 0.8:
        return Request(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body), True)
    cut = rng.randrange(len(body) + 1)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part)
    return Request(b"%btransfer-encoding: chunked\r\n\r\n%b0\r\n\r\n" % (head, chunks), True)


def _broken(rng: random.Random, model: str) -> bytes:
    """Anything: strange methods and headers, several requests at once, damage."""
    good = _posted(rng, model).data
    match rng.randrange(4):
        case 0:
            return damaged(rng, good, (_posted(rng, model).data,))
        case 1:
            return good * rng.randrange(2, 6)
        case _:
            path = rng.choice((*BODIES, *_OTHERS))
            lines = [
                f"{rng.choice(_METHODS)} {path} HTTP/{rng.choice(('1.1', '1.0', '2.0', '0.9'))}".encode()
            ]
            lines += [b"host: localhost"] * (rng.random() < 0.9)
            lines += rng.choices(_HEADERS, k=rng.randrange(6))
            data = b"\r\n".join((*lines, b"", b"")) + good.partition(b"\r\n\r\n")[2]
            return damaged(rng, data) if rng.random() < 0.3 else data


_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
REFUSALS = frozenset({501, 505})
"""Above 499 and yet no failure: a coding or a version of HTTP that is not served."""
_BETRAYALS = (b"Traceback", b" object at 0x", b"/site-packages/", b'File "')


def statuses(answer: bytes) -> list[int]:
    """The statuses of all answers in what a connection has said."""
    return [int(status) for status in _STATUS.findall(answer)]


def judge(answer: bytes) -> str:
    """What is wrong with an answer, "" for nothing."""
    failed = [status for status in statuses(answer) if status >= 500 and status not in REFUSALS]
    if failed:
        return f"status {failed[0]}"
    betrayal = next((mark for mark in _BETRAYALS if mark in answer), b"")
    return f"the answer holds {betrayal!r}" if betrayal else ""
