"""A real company under attack: what an attacker sends, and what must hold for everybody else meanwhile.

Around every attack a neighbour streams one completion after another, each of which must come out token for
token as it did in peace. Afterwards no actor may have been restarted, the log may hold no crash, and
descriptors and memory must have come back.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.serving import Company

OPTIONS = (
    *("--executor", "hash", "--step-ms", "1", "--log-format", "json"),
    *("--max-connections", "64", "--head-seconds", "2", "--body-seconds", "2", "--write-seconds", "4"),
)
PATIENCE = 60.0
"""Seconds for whatever must happen in the end."""
COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
CRASHES = ("Traceback", '"level": "error"', '"level": "critical"', "request_failed", "session_failed")
MEMORY = 64 * 1024 * 1024
UPGRADE = (
    b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def connect(company: Company) -> socket.socket:
    """A connection that gives up after PATIENCE."""
    return socket.create_connection((company.host, company.port), timeout=PATIENCE)


def talk(company: Company, data: bytes) -> bytes:
    """Send bytes, and return all that comes until the server closes."""
    answer = bytearray()
    with connect(company) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(data)
        while piece := sock.recv(65536):
            answer += piece
    return bytes(answer)


def status_of(answer: bytes) -> int:
    """Status of the first answer; 0 for none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def post(company: Company, path: str, body: Any) -> tuple[int, Any]:
    """Status and document of one request; bytes go as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(company.host, company.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", path, data, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")


def completion(company: Company, **fields: Any) -> dict[str, Any]:
    """A small request for text."""
    return {"model": company.model, "prompt": "a neighbour", "max_tokens": 4, "ignore_eos": True, **fields}


class WebClient:
    """A WebSocket that sends what it is told to."""

    def __init__(self, company: Company, *headers: bytes) -> None:
        self.sock = connect(company)
        self.sock.sendall(UPGRADE + b"".join(header + b"\r\n" for header in headers) + b"\r\n")
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self._more()
        self.head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")

    def __enter__(self) -> WebClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def _more(self) -> bytes:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        return data

    def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self.buffer += self._more()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def send(self, event: Any) -> None:
        """One event; bytes go as they are."""
        self.sock.sendall(text_frame(event if isinstance(event, bytes) else json.dumps(event).encode()))

    def frame(self) -> tuple[int, bytes]:
        """The next frame."""
        first, size = self._take(2)
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        return first & 15, self._take(size)

    def event(self) -> Any:
        """The next event; the close's code where it is a close."""
        opcode, data = self.frame()
        return struct.unpack("!H", data[:2])[0] if opcode == 8 else json.loads(data)


def text_frame(data: bytes) -> bytes:
    """A masked text message."""
    size = struct.pack("!BQ", 0xFF, len(data)) if len(data) > 125 else bytes([0x80 | len(data)])
    return b"\x81" + size + bytes(4) + data


class Neighbour:
    """Somebody who only wants to be served, over and over."""

    def __init__(self, company: Company) -> None:
        self._company = company
        self._body = completion(company, max_tokens=60, seed=11, temperature=0.9)
        self._stop = threading.Event()
        self._served = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._wrong: list[str] = []
        self._peaceful = self._once()

    def _once(self) -> str:
        status, document = post(self._company, COMPLETIONS, self._body)
        return document["choices"][0]["text"] if status == 200 else f"status {status}: {document}"

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                text = self._once()
            except ConnectionError:  # before it was answered at all: every client asks again
                continue
            except Exception as error:  # told to the test, in whose thread it is raised
                text = repr(error)
            if text != self._peaceful:
                self._wrong.append(text)
                self._stop.set()
            self._served.set()

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """Around an attack."""
        self._thread.start()
        try:
            yield
            self._served.clear()
            assert self._served.wait(PATIENCE), "the neighbour is not served any more"
        finally:
            self._stop.set()
            self._thread.join(PATIENCE)
        assert not self._wrong, self._wrong


@contextlib.contextmanager
def besieged(company: Company) -> Iterator[None]:
    """Around an attack: a neighbour, and a look at what is left."""
    before = company.status()
    pid = company.pids()["frontend.0"]
    assert post(company, COMPLETIONS, completion(company))[0] == 200
    descriptors, memory = _descriptors(pid), _memory(pid)
    with Neighbour(company).streaming():
        yield
    deadline = time.monotonic() + PATIENCE
    while _descriptors(pid) > descriptors + 2 or company.actor("frontend.0")["open_requests"]:
        assert time.monotonic() < deadline, (_descriptors(pid), descriptors, company.actor("frontend.0"))
        time.sleep(0.1)
    assert _memory(pid) - memory < MEMORY
    after = company.status()
    assert {a["name"]: a["pid"] for a in after["actors"]} == {a["name"]: a["pid"] for a in before["actors"]}
    crashes = [line for line in company.stderr().splitlines() if any(mark in line for mark in CRASHES)]
    assert not crashes, crashes


def _descriptors(pid: int) -> int:
    return sum(1 for _ in pathlib.Path(f"/proc/{pid}/fd").iterdir())


def _memory(pid: int) -> int:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
