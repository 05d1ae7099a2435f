"""HTTP/1.1 on one connection: h11 between the bytes of a transport and requests, answers and their parts."""

from __future__ import annotations

import dataclasses
import http
import math
import re
import secrets

import h11
import trio

from protocols.errors import ErrorBody, UserError
from protocols.openai.body import error_document
from runtime.occupancy import Limits, Occupancy
from runtime.transport import Transport

JSON = "application/json"
_LINGER_SECONDS = 2.0
_SERVER = (b"server", b"troupe")

Headers = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Head:
    """The head of a request. path: still percent-encoded; headers: lower-case names."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    version: str

    def values(self, name: str) -> list[str]:
        """Every value of the header `name` (lower case)."""
        return [value for key, value in self.headers if key == name]

    def value(self, name: str) -> str:
        """The only value of a header; "" when it is absent or ambiguous."""
        values = self.values(name)
        return values[0] if len(values) == 1 else ""

    @property
    def upgrades(self) -> bool:
        """Whether the client asks for a WebSocket."""
        tokens = {token.strip().lower() for value in self.values("connection") for token in value.split(",")}
        return "upgrade" in tokens and self.value("upgrade").lower() == "websocket"


class Wire:
    """One connection as h11 sees it. suspect: a peer that a proxy might understand otherwise."""

    def __init__(self, transport: Transport, occupancy: Occupancy) -> None:
        self.transport = transport
        self.occupancy = occupancy
        self.suspect = False
        self._held = 0
        self._event: object = None
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=self.limits.head_bytes)

    @property
    def limits(self) -> Limits:
        """Bounds of the connection."""
        return self.occupancy.limits

    @property
    def closing(self) -> bool:
        """Whether the answer being given is this connection's last."""
        return self.occupancy.stopping or self.suspect

    @property
    def ahead(self) -> bytes:
        """What has come beyond what was read."""
        return self._protocol.trailing_data[0]

    async def await_bytes(self) -> bool:
        """Take in what comes next; False at the end."""
        data = await self.transport.receive()
        self._protocol.receive_data(data)
        return bool(data)

    def has_event(self) -> bool:
        """Whether what comes next can be read without waiting. Raises h11.RemoteProtocolError."""
        if self._event is None:
            event = self._protocol.next_event()
            self._event = event if event is not h11.NEED_DATA else None
        return self._event is not None

    async def read_head(self) -> Head | None:
        """The head of the next request; None when there is no more. Raises h11.RemoteProtocolError."""
        event = await self._next_event()
        return _head(event) if isinstance(event, h11.Request) else None

    async def read_body(self) -> bytes:
        """The body of the current request. Raises UserError 413 beyond the limit, 408 past its deadline."""
        until = trio.current_time() + self.limits.body_seconds
        if self._protocol.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            self.transport.write_nowait(self._protocol.send(go_on) or b"")
        body = bytearray()
        while True:
            match await self._next_event(until):
                case h11.Data(data=data):
                    body += data
                    if len(body) > self.limits.body_bytes:
                        raise too_large(self.limits.body_bytes)
                    self.hold(len(body))
                case h11.EndOfMessage():
                    return bytes(body)
                case event:
                    raise UserError(f"The request ended early ({type(event).__name__}).")

    def hold(self, size: int) -> None:
        """Count `size` bytes of the client's, instead of what was said before, among those that the server
        keeps. Raises UserError 503 where they are too many."""
        more = size - self._held
        self._held = size
        self.occupancy.hold(more)

    def head(self, status: int, headers: Headers) -> bytes:
        """The head of an answer, which is to be sent."""
        closing = (("connection", "close"),) if self.closing else ()
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (*headers, *closing)]
        response = h11.Response(status_code=status, headers=[_SERVER, *raw], reason=reason(status))
        return self._protocol.send(response) or b""

    def end(self, body: bytes = b"") -> bytes:
        """The last part of its body and its end, which are to be sent."""
        last = self._protocol.send(h11.Data(data=body)) or b"" if body else b""
        return last + (self._protocol.send(h11.EndOfMessage()) or b"")

    async def linger(self) -> None:
        """Let the peer read what was sent before it has said everything, then close."""
        await self.transport.linger(_LINGER_SECONDS)

    async def refuse(self, body: ErrorBody) -> None:
        """Answer what was not a request, and close."""
        if self._protocol.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        document, self.suspect = error_document(body), True
        length, name = ("content-length", str(len(document))), f"req_{secrets.token_hex(16)}"
        head = self.head(body.status, (("content-type", JSON), length, ("x-request-id", name)))
        self.transport.write_nowait(head + self.end(document))
        await self.linger()

    def at_rest(self) -> bool:
        """Whether both sides have said everything. What is left of a body that nobody asked for is passed
        over as far as it has arrived."""
        try:
            while self._protocol.their_state is h11.SEND_BODY:
                if self._protocol.next_event() is h11.NEED_DATA:
                    return False
        except h11.RemoteProtocolError:
            return False
        finished = (h11.DONE, h11.MUST_CLOSE)
        return self._protocol.our_state in finished and self._protocol.their_state in finished

    def begin_again(self) -> bool:
        """Be ready for another request, where one may follow."""
        if self._protocol.our_state is not h11.DONE:
            return False
        self._protocol.start_next_cycle()
        return True

    async def _next_event(self, until: float = math.inf) -> object:
        """What comes next. Raises UserError 408 where it has not by `until` (Trio's clock)."""
        while not self.has_event():
            with trio.move_on_at(until) as patience:
                self._protocol.receive_data(await self.transport.receive())
            if patience.cancelled_caught:
                raise UserError("The request body did not arrive in time.", status=408)
        event, self._event = self._event, None
        return event


def reason(status: int) -> bytes:
    """The phrase that goes with a status, b"" for a number of nobody's."""
    return _PHRASES.get(status, b"")


_PHRASES = {status.value: status.phrase.encode() for status in http.HTTPStatus}


def too_large(limit: int) -> UserError:
    """The refusal of a body or message beyond `limit` bytes."""
    return UserError(f"The request is larger than {limit} bytes.", status=413, code="request_too_large")


_ABSOLUTE = re.compile(r"https?://(?P<host>[^/?#]+)/?", re.IGNORECASE)
"""How a target begins as it is written to a proxy; its host is the one that counts (RFC 9112, 3.2.2)."""


def _head(request: h11.Request) -> Head:
    target = request.target.decode("ascii")
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]
    if absolute := _ABSOLUTE.match(target):
        target = f"/{target[absolute.end() :]}"
        headers = [each for each in headers if each[0] != "host"] + [("host", absolute["host"])]
    path, _, query = target.partition("?")
    return Head(
        method=request.method.decode("ascii"),
        path=path,
        query=query,
        headers=tuple(headers),
        version=request.http_version.decode("ascii"),
    )
