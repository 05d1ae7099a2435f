"""Completion requests that are sent at the same moment, over connections that are already open."""

from __future__ import annotations

import json
import time
from typing import Any

import h11
import trio

from tools.bench.peers.cases import Prompts

_READ = 1 << 16


class Refused(Exception):
    """A server did not answer 200."""


async def together(host: str, port: int, prompts: Prompts, output: int, limit: float) -> dict[str, Any]:
    """Send all prompts at once; {"seconds": until the last answer, "tokens": each answer's ids}."""
    answers: list[list[int]] = [[] for _ in prompts]
    streams = [await trio.open_tcp_stream(host, port) for _ in prompts]

    async def one(index: int, stream: trio.SocketStream) -> None:
        async with stream:
            answers[index] = await complete(stream, host, prompts[index], output)

    started = time.perf_counter()
    with trio.fail_after(limit):
        async with trio.open_nursery() as nursery:
            for index, stream in enumerate(streams):
                nursery.start_soon(one, index, stream)
    return {"seconds": time.perf_counter() - started, "tokens": answers}


async def complete(stream: trio.SocketStream, host: str, prompt: list[int], output: int) -> list[int]:
    """The ids that one completion request is answered with."""
    document = {
        "model": "bench",
        "prompt": prompt,
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    body = json.dumps(document).encode()
    connection = h11.Connection(h11.CLIENT)
    headers = [("host", host), ("content-type", "application/json"), ("content-length", str(len(body)))]
    request = h11.Request(method="POST", target="/v1/completions", headers=headers)
    parts = (request, h11.Data(body), h11.EndOfMessage())
    await stream.send_all(b"".join(connection.send(part) or b"" for part in parts))
    status, text = await _response(stream, connection)
    if status != 200:
        raise Refused(f"status {status}: {text[:500].decode(errors='replace')}")
    ids: list[int] = json.loads(text)["choices"][0]["token_ids"]
    return ids


async def _response(stream: trio.SocketStream, connection: h11.Connection) -> tuple[int, bytes]:
    status, pieces = 0, []
    while True:
        match connection.next_event():
            case h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(_READ))
            case h11.Response(status_code=code):
                status = code
            case h11.Data(data=data):
                pieces.append(bytes(data))
            case h11.EndOfMessage():
                return status, b"".join(pieces)
            case h11.ConnectionClosed():
                raise Refused("the connection was closed")
            case _:
                pass
