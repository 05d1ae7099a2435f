"""Load on a serving company: closed-loop clients over HTTP (SSE) and WebSocket, cheap to run.

One epoll loop holds every client. It speaks just enough of the protocols to time each piece as it arrives:
one read call, one search, a clock; what an answer says is looked at when it has ended. On a small machine a
client library would measure itself, and even this much is told (`Run.processor`).
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import select
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

_READ = 1 << 16
_TIMEOUT = 300.0
"""Seconds without a byte from anybody after which the run has failed."""
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\s*(\d+)')
_END_OF_BODY = b"0\r\n\r\n"
_LAST_EVENTS = (b"response.completed", b"response.incomplete", b"response.failed", b'"error"')


@dataclasses.dataclass(frozen=True)
class Workload:
    """`clients` closed-loop clients share `prompts`; `model` answers each with `max_tokens` tokens (EOS
    ignored, greedy, unless `fields` of the request say otherwise)."""

    model: str
    clients: int
    prompts: Sequence[str]
    max_tokens: int
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Receipt:
    """One answered request: when it was sent, when each piece of text came, tokens by the server's count."""

    sent: float
    arrivals: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    error: str = ""

    @property
    def first_token(self) -> float:
        """Seconds to the first text."""
        return self.arrivals[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text."""
        return [late - early for early, late in zip(self.arrivals, self.arrivals[1:], strict=False)]


@dataclasses.dataclass(frozen=True)
class Run:
    """All receipts, the seconds from the first request to the last answer, and the processor seconds that
    the clients themselves took."""

    receipts: list[Receipt]
    seconds: float
    processor: float


class Dialogue(Protocol):
    """One client's protocol, without I/O."""

    def greeting(self, host: str) -> bytes:
        """What opens the connection; b"" for nothing."""

    def request(self, prompt: str, workload: Workload) -> bytes:
        """The bytes of a request."""

    def take(self, data: bytes, receipt: Receipt) -> bool:
        """Take in what was read; True when it ends the answer."""


class HttpDialogue:
    """Streams `/v1/completions` over one kept connection."""

    def __init__(self) -> None:
        self._host = ""
        self._pieces: list[bytes] = []
        self._end = b""

    def greeting(self, host: str) -> bytes:
        """Nothing."""
        self._host = host
        return b""

    def request(self, prompt: str, workload: Workload) -> bytes:
        """A streamed completion with its usage."""
        body = json.dumps(
            {
                "model": workload.model,
                "prompt": prompt,
                "max_tokens": workload.max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                **workload.fields,
            }
        ).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    def take(self, data: bytes, receipt: Receipt) -> bool:
        """Pieces are told by their text, the end by the last chunk."""
        if b'"text":' in data:
            receipt.arrivals.append(time.perf_counter())
        pieces = self._pieces
        if not pieces and not data.startswith(b"HTTP/1.1 200"):
            receipt.error = data.decode(errors="replace")
            return True
        pieces.append(data)
        self._end = data[-5:] if len(data) >= 5 else (self._end + data)[-5:]
        if self._end != _END_OF_BODY:
            return False
        whole = b"".join(pieces)
        receipt.tokens = _last(_COMPLETION_TOKENS, whole)
        receipt.prompt_tokens = _last(_PROMPT_TOKENS, whole)
        pieces.clear()
        return True


def _last(pattern: re.Pattern[bytes], data: bytes) -> int:
    found = pattern.findall(data)
    return int(found[-1]) if found else 0


class SocketDialogue:
    """Streams `/v1/responses` over one WebSocket, one response after the other."""

    def __init__(self) -> None:
        self._unread = b""

    def greeting(self, host: str) -> bytes:
        """The handshake."""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            "GET /v1/responses HTTP/1.1",
            f"host: {host}",
            "connection: upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            f"sec-websocket-key: {key}",
        )
        return "\r\n".join((*lines, "", "")).encode()

    def request(self, prompt: str, workload: Workload) -> bytes:
        """A `response.create` event in one frame, masked with zeros."""
        event = json.dumps(
            {
                "type": "response.create",
                "model": workload.model,
                "input": prompt,
                "max_output_tokens": workload.max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "store": False,
                **workload.fields,
            }
        ).encode()
        size = len(event)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        return b"\x81" + length + bytes(4) + event

    def take(self, data: bytes, receipt: Receipt) -> bool:
        """Walk over the whole frames; only an event that is no piece of text is looked at."""
        if self._unread:
            data = self._unread + data
        at, end = 0, len(data)
        while end - at >= 4:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if start + size > end:
                break
            if data[at] == 0x88:
                receipt.error = "the server closed the socket"
                return True
            at = start + size
            if data.find(b"output_text.delta", start, start + 40) >= 0:
                receipt.arrivals.append(time.perf_counter())
            elif _ends(data[start:at], receipt):
                self._unread = data[at:]
                return True
        self._unread = data[at:]
        return False


def _ends(event: bytes, receipt: Receipt) -> bool:
    """Take one event that is no piece of text; True when it ends the response."""
    if not any(name in event[:60] for name in _LAST_EVENTS):
        return False
    document: dict[str, Any] = json.loads(event)
    if document["type"] in ("error", "response.failed"):
        receipt.error = event.decode()
    else:
        usage = document["response"]["usage"]
        receipt.tokens, receipt.prompt_tokens = usage["output_tokens"], usage["input_tokens"]
    return True


class _Client:
    """One connection and the prompts that it still has to ask."""

    def __init__(
        self, host: str, port: int, dialogue: Dialogue, prompts: Sequence[str], workload: Workload
    ) -> None:
        self.sock = socket.create_connection((host, port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._take = dialogue.take
        self._dialogue = dialogue
        self._prompts = deque(prompts)
        self._workload = workload
        self.receipts: list[Receipt] = []
        if greeting := dialogue.greeting(host):
            self._shake_hands(greeting)

    def _shake_hands(self, greeting: bytes) -> None:
        self.sock.sendall(greeting)
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = self.sock.recv(_READ)
            answer += piece
            if not piece or not answer.startswith(b"HTTP/1.1 101"[: len(answer)]):
                raise ConnectionError(f"no WebSocket: {answer.decode(errors='replace')}")

    def ask(self) -> bool:
        """Send the next request; False when there is none."""
        if not self._prompts:
            return False
        data = self._dialogue.request(self._prompts.popleft(), self._workload)
        self._receipt = Receipt(time.perf_counter())
        self.sock.sendall(data)
        return True

    def read(self) -> bool:
        """Take what has come; False once there is nothing left to ask."""
        data = self.sock.recv(_READ)
        if data and not self._take(data, self._receipt):
            return True
        if not data:
            self._receipt.error = "connection closed"
        self.receipts.append(self._receipt)
        return not self._receipt.error and self.ask()


def run(host: str, port: int, workload: Workload, dialogue: type[Dialogue]) -> Run:
    """Ask all prompts, each client one after the other of its own."""
    clients = [
        _Client(host, port, dialogue(), workload.prompts[index :: workload.clients], workload)
        for index in range(workload.clients)
    ]
    by_fd = {client.sock.fileno(): client for client in clients}
    with select.epoll() as poll:
        started, processor = time.perf_counter(), time.process_time()
        asking = [fd for fd, client in by_fd.items() if client.ask()]
        for fd in asking:
            poll.register(fd, select.EPOLLIN)
        open_ = len(asking)
        while open_:
            ready = poll.poll(_TIMEOUT)
            if not ready:
                raise TimeoutError(f"nothing came for {_TIMEOUT} seconds")
            for fd, _ in ready:
                if not by_fd[fd].read():
                    poll.unregister(fd)
                    open_ -= 1
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
    for client in clients:
        client.sock.close()
    return Run([receipt for client in clients for receipt in client.receipts], seconds, processor)
