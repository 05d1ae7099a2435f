"""An HTTP/1.1 server: h11 decides what is legal, Trio waits, a handler answers.

A connection reads one request after another (keep-alive). The handler gets an `Exchange` and runs in
a scope that is cancelled when the peer goes away, so that its `finally` is where work is aborted. Every
refusal of this layer is an OpenAI error document too. Deadlines bound a slow peer in every phase:
head, body, silence between requests, and writing (`runtime.transport`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import http
import math
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator

import h11
import structlog
import trio

from protocols.errors import ErrorBody, UserError
from protocols.openai.body import error_document
from runtime.tls import Tls
from runtime.transport import Transport, prepare

JSON = "application/json"
_LINGER_SECONDS = 2.0
_SERVER = (b"server", b"troupe")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of one connection; bytes and seconds. Of one server: max_connections, and bodies_bytes of all
    request bodies together. parting_seconds: how long a silent connection is still listened to once the
    server stops, for a request may be under way on it."""

    head_bytes: int = 65536
    head_seconds: float = 10.0
    body_bytes: int = 4 * 1024 * 1024
    bodies_bytes: int = 256 * 1024 * 1024
    body_seconds: float = 60.0
    idle_seconds: float = 75.0
    write_seconds: float = 30.0
    parting_seconds: float = 1.0
    max_connections: int = 8192


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


Headers = tuple[tuple[str, str], ...]


class Exchange:
    """One request and its answer, on a connection that may carry more of them. extra: headers that its answer
    has whatever it is. document: how a refusal is written. transport, limits: of the connection below."""

    def __init__(self, head: Head, connection: Connection) -> None:
        self.head = head
        self.id = f"req_{secrets.token_hex(16)}"
        self.started = False
        self.upgraded = False
        self.extra: Callable[[], Headers] = tuple
        self.document: Callable[[ErrorBody], bytes] = error_document
        self.transport = connection.transport
        self.limits = connection.limits
        self._connection = connection
        self._chunked = True

    @property
    def ready(self) -> bool:
        """Whether a piece of the answer would go straight to the kernel."""
        return self.started and self.transport.ready

    async def body(self) -> bytes:
        """The whole body. Raises UserError 413 beyond the limit, 408 past its deadline."""
        lengths, limits = self.head.values("content-length"), self._connection.limits
        if lengths and int(lengths[0]) > limits.body_bytes:
            raise too_large(limits.body_bytes)
        with trio.move_on_after(limits.body_seconds):
            return await self._connection.read_body()
        raise UserError("The request body did not arrive in time.", status=408)

    async def respond(self, status: int, body: bytes, *, kind: str = JSON, headers: Headers = ()) -> None:
        """Answer at once."""
        length = (("content-length", str(len(body))),) if status != 204 else ()
        self._send_head(status, (("content-type", kind), *length, *headers))
        if body and self.head.method != "HEAD":
            self.transport.write_nowait(self._connection.protocol.send(h11.Data(data=body)) or b"")
        await self.finish()

    async def refuse(self, body: ErrorBody, *, headers: Headers = ()) -> None:
        """Answer with an error document."""
        retry = (("retry-after", str(body.retry_after)),) if body.retry_after is not None else ()
        scheme = (("www-authenticate", "Bearer"),) if body.status == 401 else ()
        await self.respond(body.status, self.document(body), headers=(*retry, *scheme, *headers))

    def start_nowait(self, status: int, *, kind: str, headers: Headers = ()) -> None:
        """Begin an answer of unknown length; pieces follow by `write_nowait`."""
        self._send_head(status, (("content-type", kind), *headers))
        self._chunked = self.head.version != "1.0"

    def write_nowait(self, data: bytes) -> None:
        """One piece of a started answer: one chunk, one write. Framed here because h11 takes ten times
        as long for it; chunk framing keeps no state that h11 would miss."""
        self.transport.write_nowait(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def finish(self) -> None:
        """End the answer and wait until the kernel has it."""
        self.transport.write_nowait(self._connection.protocol.send(h11.EndOfMessage()) or b"")
        await self.transport.drained()

    def upgrade(self) -> bytes:
        """Leave HTTP; returns what the client has already sent beyond the request."""
        self.started = self.upgraded = True
        return self._connection.protocol.trailing_data[0]

    def hold(self, size: int) -> None:
        """Count `size` bytes of the client's, instead of what was said before, among those that the server
        keeps. Raises UserError 503 where they are too many."""
        self._connection.hold(size)

    def rest(self, give_way: Callable[[], None]) -> None:
        """An upgraded connection has nothing to do: `give_way` is called when its place is needed."""
        self._connection.server.resting[give_way] = None

    def work(self, give_way: Callable[[], None]) -> None:
        """It has something to do, or is over."""
        self._connection.server.resting.pop(give_way, None)

    def _send_head(self, status: int, headers: Headers) -> None:
        closing = (("connection", "close"),) if self._connection.closing else ()
        raw = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in (*headers, *self.extra(), ("x-request-id", self.id), *closing)
        ]
        response = h11.Response(status_code=status, headers=[_SERVER, *raw], reason=reason(status))
        self.started = True
        self.transport.write_nowait(self._connection.protocol.send(response) or b"")


Handler = Callable[[Exchange], Awaitable[None]]
Log = structlog.stdlib.BoundLogger


class Connection:
    """One accepted socket: the cycle of requests and answers."""

    def __init__(self, sock: socket.socket, server: HttpServer) -> None:
        self.limits = server.limits
        tls = Tls(server.tls) if server.tls is not None else None
        self.transport = Transport(sock, tls=tls, write_seconds=server.limits.write_seconds)
        self.protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=server.limits.head_bytes)
        self.server = server
        self._fresh = True
        self._suspect = False
        self._held = 0

    @property
    def closing(self) -> bool:
        """Whether the answer being given is this connection's last."""
        return self.server.stopping or self._suspect

    async def run(self, handler: Handler) -> None:
        """Serve the connection until one side closes it."""
        with trio.move_on_after(self.limits.head_seconds) as scope, self.server.idle(scope):
            if not await self.transport.shake_hands():
                scope.cancel()
        if scope.cancel_called:
            self.transport.close()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.transport.run)
            try:
                while await self._cycle(handler):
                    self.protocol.start_next_cycle()
            finally:
                nursery.cancel_scope.cancel()
                self.transport.close()

    async def read_body(self) -> bytes:
        """The body of the current request."""
        if self.protocol.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            self.transport.write_nowait(self.protocol.send(go_on) or b"")
        body = bytearray()
        while True:
            match await self._next_event():
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
        """Count the current body among those of the server. Raises UserError 503 where they are too many."""
        self.server.held += size - self._held
        self._held = size
        if self.server.held > self.limits.bodies_bytes:
            raise UserError(
                "The server has no memory for another request.",
                status=503,
                type="overloaded_error",
                code="server_overloaded",
                retry_after=1,
            )

    async def _cycle(self, handler: Handler) -> bool:
        """One request and its answer; whether another may follow. What a lost peer had sent is not
        answered."""
        await trio.lowlevel.checkpoint()
        if self.transport.over:
            return False
        try:
            head = await self._read_head()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            await self._refuse(ErrorBody(status, f"Bad HTTP request: {error}.", code="bad_request"))
            return False
        if head is None:
            return False
        exchange = Exchange(head, self)
        try:
            with self.transport.cancelled_when_lost() as scope:
                await self._answer(handler, exchange)
        finally:
            self.hold(0)
        if scope.cancelled_caught or exchange.upgraded:
            return False
        if not self._at_rest():
            await self.transport.linger(_LINGER_SECONDS)
            return False
        return self.protocol.our_state is h11.DONE

    def _at_rest(self) -> bool:
        """Whether both sides have said everything. What is left of a body that nobody asked for is passed
        over as far as it has arrived."""
        try:
            while self.protocol.their_state is h11.SEND_BODY:
                if self.protocol.next_event() is h11.NEED_DATA:
                    return False
        except h11.RemoteProtocolError:
            return False
        finished = (h11.DONE, h11.MUST_CLOSE)
        return self.protocol.our_state in finished and self.protocol.their_state in finished

    async def _answer(self, handler: Handler, exchange: Exchange) -> None:
        try:
            self._check_framing(exchange.head)
            await handler(exchange)
        except UserError as error:
            if not exchange.started:
                await exchange.refuse(error.body)
        except h11.RemoteProtocolError as error:
            if not exchange.started:
                await exchange.refuse(ErrorBody(error.error_status_hint, f"Bad HTTP request: {error}."))
        except Exception:
            self.server.log.exception("request_failed", request_id=exchange.id)
            if not exchange.started:
                message = "The server failed on this request."
                await exchange.refuse(ErrorBody(500, message, "server_error", "internal_error"))

    def _check_framing(self, head: Head) -> None:
        """Refuse other versions, and what a proxy could read differently (two framings)."""
        if head.version not in ("1.0", "1.1"):
            self._suspect = True
            raise UserError("Only HTTP/1.0 and HTTP/1.1 are served.", status=505)
        if head.values("content-length") and head.values("transfer-encoding"):
            self._suspect = True
            raise UserError("A request may carry content-length or transfer-encoding, not both.")

    async def _read_head(self) -> Head | None:
        """The next request; None when the connection is over, or has to give its place to another at once."""
        if not await self._await_request():
            return None
        with trio.move_on_after(self.limits.head_seconds) as scope, self.server.idle(scope, parts=False):
            event = await self._next_event()
            return _head(event) if isinstance(event, h11.Request) else None
        if trio.current_time() >= scope.deadline:
            await self._refuse(ErrorBody(408, "The request head did not arrive in time."))
        return None

    async def _await_request(self) -> bool:
        """Park until the first byte of a request; False when none came in time."""
        if self.protocol.trailing_data[0]:
            return True
        patience = self.limits.head_seconds if self._fresh else self.limits.idle_seconds
        self._fresh = False
        with trio.move_on_after(patience) as scope, self.server.idle(scope):
            data = await self.transport.receive()
            self.protocol.receive_data(data)
            return bool(data)
        return False

    async def _next_event(self) -> object:
        while True:
            event = self.protocol.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.protocol.receive_data(await self.transport.receive())

    async def _refuse(self, body: ErrorBody) -> None:
        """Answer what was not a request, and close."""
        if self.protocol.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        document = error_document(body)
        headers = [
            _SERVER,
            (b"content-type", JSON.encode()),
            (b"content-length", b"%d" % len(document)),
            (b"x-request-id", b"req_" + secrets.token_hex(16).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=body.status, headers=headers, reason=reason(body.status)),
            h11.Data(data=document),
            h11.EndOfMessage(),
        ):
            self.transport.write_nowait(self.protocol.send(event) or b"")
        await self.transport.linger(_LINGER_SECONDS)


class HttpServer:
    """Accepts on one listener (other processes may accept on it too) and serves each connection."""

    def __init__(self, handler: Handler, limits: Limits, log: Log, tls: ssl.SSLContext | None = None) -> None:
        self.limits = limits
        self.log = log
        self.tls = tls
        self.held = 0
        self.stopping = False
        self.connections = 0
        self._parting = math.inf
        self._handler = handler
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()
        self._idle: dict[trio.CancelScope, bool] = {}
        self.resting: dict[Callable[[], None], None] = {}

    async def serve(self, listener: socket.socket) -> None:
        """Accept until `stop`, then return when the last connection has ended."""
        listener.setblocking(False)
        capacity = trio.Semaphore(self.limits.max_connections)
        with self._serving:
            async with trio.open_nursery() as nursery:
                with self._accepting:
                    while True:
                        sock = await self._accept(listener)
                        await self._make_room(capacity)
                        nursery.start_soon(self._serve_one, sock, capacity)

    def stop(self) -> None:
        """Stop accepting, let every request finish, and close connections that stay silent. What has been
        sent meanwhile is served: its client could not know."""
        self.stopping = True
        self._parting = trio.current_time() + self.limits.parting_seconds
        self._accepting.cancel()
        for scope, parts in self._idle.items():
            if parts:
                scope.deadline = min(scope.deadline, self._parting)

    def cut(self) -> None:
        """End every connection at once."""
        self._serving.cancel()

    @contextlib.contextmanager
    def idle(self, scope: trio.CancelScope, *, parts: bool = True) -> Iterator[None]:
        """Around the wait for a request, which is cancelled when its place is needed; `parts`: and cut short
        by `stop`."""
        if parts:
            scope.deadline = min(scope.deadline, self._parting)
        self._idle[scope] = parts
        try:
            yield
        finally:
            del self._idle[scope]

    async def _make_room(self, capacity: trio.Semaphore) -> None:
        """Take a place for a new connection. Where there is none, the one that has waited longest for its
        next request gives its own up, or else the upgraded one that has rested longest."""
        if capacity.value == 0 and self._idle:
            next(iter(self._idle)).cancel()
        elif capacity.value == 0 and self.resting:
            next(iter(self.resting))()
        await capacity.acquire()

    async def _accept(self, listener: socket.socket) -> socket.socket:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self.log.warning("accept_failed", reason=error.strerror)
                await trio.sleep(0.1)
                continue
            return sock

    async def _serve_one(self, sock: socket.socket, capacity: trio.Semaphore) -> None:
        self.connections += 1
        try:
            prepare(sock)
            await Connection(sock, self).run(self._handler)
        except OSError as error:
            self.log.debug("connection_failed", reason=error.strerror)
        except Exception:
            self.log.exception("connection_failed")
        finally:
            sock.close()
            self.connections -= 1
            capacity.release()


def reason(status: int) -> bytes:
    """The phrase that goes with a status, b"" for a number of nobody's."""
    return _PHRASES.get(status, b"")


_PHRASES = {status.value: status.phrase.encode() for status in http.HTTPStatus}


def too_large(limit: int) -> UserError:
    """The refusal of a body or message beyond `limit` bytes."""
    return UserError(f"The request is larger than {limit} bytes.", status=413, code="request_too_large")


def _head(request: h11.Request) -> Head:
    path, _, query = request.target.decode("ascii").partition("?")
    return Head(
        method=request.method.decode("ascii"),
        path=path,
        query=query,
        headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers),
        version=request.http_version.decode("ascii"),
    )
