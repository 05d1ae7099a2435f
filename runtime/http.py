"""An HTTP/1.1 server: h11 decides what is legal, Trio waits, a handler answers.

A connection reads one request after another (keep-alive). The handler gets an `Exchange` and runs in
a scope that is cancelled when the peer goes away, so that its `finally` is where work is aborted. Every
refusal of this layer is an OpenAI error document too. Deadlines bound a slow peer in every phase:
head, body, silence between requests, and writing (`runtime.transport`).
"""

from __future__ import annotations

import errno
import socket
import ssl

import h11
import structlog
import trio

from protocols.errors import ErrorBody, UserError
from runtime.exchange import Exchange, Handler
from runtime.http_wire import Head, Wire
from runtime.occupancy import Limits, Occupancy
from runtime.tls import Tls
from runtime.transport import Transport, prepare

Log = structlog.stdlib.BoundLogger


class Connection:
    """One accepted socket: the cycle of requests and answers."""

    def __init__(
        self, sock: socket.socket, occupancy: Occupancy, log: Log, tls: ssl.SSLContext | None
    ) -> None:
        self._limits = occupancy.limits
        self._occupancy = occupancy
        self._log = log
        self._transport = Transport(
            sock, tls=Tls(tls) if tls is not None else None, write_seconds=self._limits.write_seconds
        )
        self._wire = Wire(self._transport, occupancy)
        self._fresh = True

    async def run(self, handler: Handler) -> None:
        """Serve the connection until one side closes it."""
        with trio.move_on_after(self._limits.head_seconds) as scope, self._occupancy.idle(scope):
            if not await self._transport.shake_hands():
                scope.cancel()
        if scope.cancel_called:
            self._transport.close()
            return
        async with trio.open_nursery() as nursery:
            self._transport.start(nursery)
            try:
                while await self._cycle(handler):
                    pass
            finally:
                nursery.cancel_scope.cancel()
                self._transport.close()

    async def _cycle(self, handler: Handler) -> bool:
        """One request and its answer; whether another may follow. What a lost peer had sent is not
        answered."""
        if self._wire.ahead:
            await trio.lowlevel.checkpoint()
        if self._transport.over:
            return False
        try:
            head = await self._read_head()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            await self._wire.refuse(ErrorBody(status, f"Bad HTTP request: {error}.", code="bad_request"))
            return False
        if head is None:
            return False
        exchange = Exchange(head, self._wire)
        try:
            with self._transport.cancelled_when_lost() as scope:
                await self._answer(handler, exchange)
        finally:
            self._wire.hold(0)
        if scope.cancelled_caught or exchange.upgraded:
            return False
        if not self._wire.at_rest():
            await self._wire.linger()
            return False
        return self._wire.begin_again()

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
            self._log.exception("request_failed", request_id=exchange.id)
            if not exchange.started:
                message = "The server failed on this request."
                await exchange.refuse(ErrorBody(500, message, "server_error", "internal_error"))

    def _check_framing(self, head: Head) -> None:
        """Refuse other versions, and what a proxy could read differently (two framings)."""
        if head.version not in ("1.0", "1.1"):
            self._wire.suspect = True
            raise UserError("Only HTTP/1.0 and HTTP/1.1 are served.", status=505)
        if head.values("content-length") and head.values("transfer-encoding"):
            self._wire.suspect = True
            raise UserError("A request may carry content-length or transfer-encoding, not both.")

    async def _read_head(self) -> Head | None:
        """The next request; None when the connection is over, or has to give its place to another at once."""
        if not await self._await_request():
            return None
        if self._wire.has_event():
            return await self._wire.read_head()
        with trio.move_on_after(self._limits.head_seconds) as scope, self._occupancy.idle(scope, parts=False):
            return await self._wire.read_head()
        if trio.current_time() >= scope.deadline:
            await self._wire.refuse(ErrorBody(408, "The request head did not arrive in time."))
        return None

    async def _await_request(self) -> bool:
        """Park until the first byte of a request; False when none came in time."""
        if self._wire.ahead:
            return True
        patience = self._limits.head_seconds if self._fresh else self._limits.idle_seconds
        self._fresh = False
        with trio.move_on_after(patience) as scope, self._occupancy.idle(scope):
            return await self._wire.await_bytes()
        return False


class HttpServer:
    """Accepts on one listener (other processes may accept on it too) and serves each connection."""

    def __init__(self, handler: Handler, limits: Limits, log: Log, tls: ssl.SSLContext | None = None) -> None:
        self.occupancy = Occupancy(limits)
        self.connections = 0
        self._handler = handler
        self._log = log
        self._tls = tls
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()

    async def serve(self, listener: socket.socket) -> None:
        """Accept until `stop`, then return when the last connection has ended."""
        listener.setblocking(False)
        with self._serving:
            async with trio.open_nursery() as nursery:
                with self._accepting:
                    while True:
                        sock = await self._accept(listener)
                        await self.occupancy.take_place()
                        nursery.start_soon(self._serve_one, sock)

    def stop(self) -> None:
        """Stop accepting, let every request finish, and close connections that stay silent."""
        self._accepting.cancel()
        self.occupancy.stop()

    def cut(self) -> None:
        """End every connection at once."""
        self._serving.cancel()

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
                self._log.warning("accept_failed", reason=error.strerror)
                await trio.sleep(0.1)
                continue
            return sock

    async def _serve_one(self, sock: socket.socket) -> None:
        self.connections += 1
        try:
            prepare(sock)
            await Connection(sock, self.occupancy, self._log, self._tls).run(self._handler)
        except OSError as error:
            self._log.debug("connection_failed", reason=error.strerror)
        except Exception:
            self._log.exception("connection_failed")
        finally:
            sock.close()
            self.connections -= 1
            self.occupancy.give_place()
