"""A small streaming HTTP client (h11 on Trio) whose failures are all one exception."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio

_READ = 1 << 16


class Broken(Exception):
    """The connection failed or ended early: whoever served it is gone."""


class Refusal(Exception):
    """The server answered with an error document."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body.decode(errors='replace')[:300]}")
        self.status = status


class Answer:
    """An answer whose head has come; its body is read piece by piece."""

    def __init__(self, stream: trio.SocketStream, connection: h11.Connection, status: int) -> None:
        self._stream, self._connection, self.status = stream, connection, status
        self._lines: deque[bytes] = deque()
        self._rest = b""

    async def piece(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises Broken when it is cut off."""
        while True:
            event = await _next(self._stream, self._connection)
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""

    async def whole(self) -> bytes:
        """All of the body."""
        body = b""
        while piece := await self.piece():
            body += piece
        return body

    async def event(self) -> dict[str, Any] | None:
        """The JSON of the next server-sent event but `[DONE]`, None at the end."""
        while True:
            while self._lines:
                line = self._lines.popleft()
                if line.startswith(b"data: {"):
                    found: dict[str, Any] = json.loads(line[6:])
                    return found
            piece = await self.piece()
            if not piece:
                return None
            *lines, self._rest = (self._rest + piece).split(b"\n")
            self._lines.extend(lines)


async def _next(stream: trio.SocketStream, connection: h11.Connection) -> h11.Event:
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_READ))
    except (h11.RemoteProtocolError, trio.BrokenResourceError, OSError) as error:
        raise Broken(str(error)) from error
    if isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
        raise Broken("closed")
    assert isinstance(event, h11.Response | h11.Data | h11.EndOfMessage | h11.InformationalResponse)
    return event


@asynccontextmanager
async def request(
    host: str,
    port: int,
    method: str,
    path: str,
    document: dict[str, Any] | None = None,
    more_headers: Sequence[tuple[str, str]] = (),
) -> AsyncIterator[Answer]:
    """Send one request on a connection of its own. Raises Broken, or Refusal unless the status is 200."""
    body = b"" if document is None else json.dumps(document).encode()
    headers = [
        ("host", f"{host}:{port}"),
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        *more_headers,
    ]
    connection = h11.Connection(h11.CLIENT)
    head = connection.send(h11.Request(method=method, target=path, headers=headers)) or b""
    data = head + (connection.send(h11.Data(data=body)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise Broken(str(error)) from error
    async with stream:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise Broken(str(error)) from error
        answer = Answer(stream, connection, await _status(stream, connection))
        if answer.status != 200:
            raise Refusal(answer.status, await answer.whole())
        yield answer


async def _status(stream: trio.SocketStream, connection: h11.Connection) -> int:
    event = await _next(stream, connection)
    while not isinstance(event, h11.Response):
        event = await _next(stream, connection)
    return event.status_code
