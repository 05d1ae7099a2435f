"""Load on a serving company: closed-loop clients over HTTP (SSE) and WebSocket, cheap to run.

The clients speak just enough of the protocols to time each chunk as it arrives: one read call, a
search for event boundaries, a clock. On a small machine a full client library would measure itself.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Sequence

import trio
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

_READ = 1 << 16


@dataclasses.dataclass(frozen=True)
class Workload:
    """`clients` closed-loop clients share `prompts`; `model` answers each with `max_tokens` tokens (EOS
    ignored, greedy)."""

    model: str
    clients: int
    prompts: Sequence[str]
    max_tokens: int


@dataclasses.dataclass
class Receipt:
    """One answered request: when it was sent, when each piece of text came, tokens by the server's count."""

    sent: float
    arrivals: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    text: str = ""
    error: str = ""

    @property
    def first_token(self) -> float:
        """Seconds to the first text."""
        return self.arrivals[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text."""
        return [late - early for early, late in zip(self.arrivals, self.arrivals[1:], strict=False)]


Client = Callable[[str, int, Workload, Sequence[str]], Awaitable[list[Receipt]]]


async def run(host: str, port: int, workload: Workload, client: Client) -> tuple[list[Receipt], float]:
    """All receipts, and the seconds from the first request to the last answer."""
    receipts: list[Receipt] = []

    async def one(prompts: Sequence[str]) -> None:
        receipts.extend(await client(host, port, workload, prompts))

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for index in range(workload.clients):
            nursery.start_soon(one, workload.prompts[index :: workload.clients])
    return receipts, time.perf_counter() - started


async def http_client(host: str, port: int, workload: Workload, prompts: Sequence[str]) -> list[Receipt]:
    """Streams `/v1/completions` over one kept connection."""
    stream = await trio.open_tcp_stream(host, port)
    async with stream:
        return [await _sse(stream, host, prompt, workload) for prompt in prompts]


async def _sse(stream: trio.SocketStream, host: str, prompt: str, workload: Workload) -> Receipt:
    body = json.dumps(
        {
            "model": workload.model,
            "prompt": prompt,
            "max_tokens": workload.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    receipt = Receipt(time.perf_counter())
    await stream.send_all(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    seen = bytearray()
    while not seen.endswith(b"0\r\n\r\n"):
        piece = await stream.receive_some(_READ)
        if not piece:
            receipt.error = "connection closed"
            return receipt
        if b'"text":' in piece:
            receipt.arrivals.append(time.perf_counter())
        seen += piece
        if not seen.startswith(b"HTTP/1.1 200"):
            receipt.error = seen.decode(errors="replace")
            return receipt
    for line in bytes(seen).split(b"\n"):
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            receipt.text += "".join(choice["text"] for choice in event["choices"])
            usage = event.get("usage") or {}
            receipt.tokens = usage.get("completion_tokens", receipt.tokens)
            receipt.prompt_tokens = usage.get("prompt_tokens", receipt.prompt_tokens)
    return receipt


async def socket_client(host: str, port: int, workload: Workload, prompts: Sequence[str]) -> list[Receipt]:
    """Streams `/v1/responses` over one WebSocket, one response after the other."""
    stream = await trio.open_tcp_stream(host, port)
    protocol = ClientProtocol(parse_uri(f"ws://{host}:{port}/v1/responses"))
    async with stream:
        protocol.send_request(protocol.connect())
        await _flush(stream, protocol)
        while protocol.handshake_exc is None and not protocol.events_received():
            protocol.receive_data(await stream.receive_some(_READ))
        if protocol.handshake_exc is not None:
            raise protocol.handshake_exc
        return [await _lane(stream, protocol, prompt, workload) for prompt in prompts]


async def _flush(stream: trio.SocketStream, protocol: ClientProtocol) -> None:
    for data in protocol.data_to_send():
        if data:
            await stream.send_all(data)


async def _lane(
    stream: trio.SocketStream, protocol: ClientProtocol, prompt: str, workload: Workload
) -> Receipt:
    request = {
        "type": "response.create",
        "model": workload.model,
        "input": prompt,
        "max_output_tokens": workload.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "store": False,
    }
    receipt = Receipt(time.perf_counter())
    protocol.send_text(json.dumps(request).encode())
    await _flush(stream, protocol)
    while True:
        data = await stream.receive_some(_READ)
        if not data:
            receipt.error = "connection closed"
            return receipt
        protocol.receive_data(data)
        for frame in protocol.events_received():
            if (
                isinstance(frame, Frame)
                and frame.opcode is Opcode.TEXT
                and _event(bytes(frame.data), receipt)
            ):
                return receipt
        await _flush(stream, protocol)


def _event(data: bytes, receipt: Receipt) -> bool:
    """Take one event into the receipt; True when it ends the response."""
    if b'"response.output_text.delta"' in data[:64]:
        receipt.arrivals.append(time.perf_counter())
        receipt.text += json.loads(data)["delta"]
        return False
    event = json.loads(data)
    if event["type"] in ("error", "response.failed"):
        receipt.error = data.decode()
        return True
    if event["type"] in ("response.completed", "response.incomplete"):
        usage = event["response"]["usage"]
        receipt.tokens, receipt.prompt_tokens = usage["output_tokens"], usage["input_tokens"]
        return True
    return False
