"""What administrators watch through a frontend: the live page and its WebSocket, and the metrics.

Both are the supervisor's words, relayed from its admin socket: a frontend adds nothing and keeps nothing. A
watcher that reads too slowly misses looks at the board, never an event.
"""

from __future__ import annotations

import contextlib
import urllib.parse

import msgspec
import trio

from actors.frontend.page import Page
from protocols.config import Config
from protocols.errors import UserError, VerbError
from runtime import admin
from runtime.exchange import Exchange
from runtime.metrics import CONTENT_TYPE
from runtime.websocket import WebSocket

WATCHERS = 8
"""WebSockets of a frontend that may watch at once; each holds one of the supervisor's admin connections."""
METRICS_SECONDS = 10.0
LOOK_SECONDS = 0.5
RESTART = 1012
_MAX_MESSAGE = 1024


class Watching:
    """The handlers of one frontend."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._places = trio.CapacityLimiter(WATCHERS)
        self._page = Page("company.html")

    @property
    def _address(self) -> str:
        return admin.address(self._config.name, self._config.socket)

    async def page(self, exchange: Exchange) -> None:
        """Answer `GET /_company`."""
        await self._page.show(exchange)

    async def metrics(self, exchange: Exchange) -> None:
        """Answer `GET /metrics`."""
        with trio.move_on_after(METRICS_SECONDS):
            try:
                reply = await admin.call(self._address, {"verb": "metrics"})
            except (VerbError, admin.Unreachable) as error:
                raise _unavailable(str(error)) from error
            await exchange.respond(200, reply["text"].encode(), kind=CONTENT_TYPE)
            return
        raise _unavailable("The supervisor did not answer in time.")

    async def live(self, exchange: Exchange) -> None:
        """Answer a handshake at `/_company/live`: JSON with `status` and `tree` at each look, and `events`
        when there are any. `?since=N`: those after number N."""
        if not exchange.head.upgrades:
            raise UserError("GET /_company/live is a WebSocket.", status=426, code="upgrade_required")
        since = urllib.parse.parse_qs(exchange.head.query).get("since", ["0"])[-1]
        request: admin.Request = {"verb": "watch", "interval": LOOK_SECONDS}
        request["since"] = int(since) if since.isdecimal() and len(since) < 16 else 0
        try:
            self._places.acquire_on_behalf_of_nowait(exchange)
        except trio.WouldBlock:
            raise _unavailable(f"{WATCHERS} are watching already.") from None
        try:
            await self._relay(WebSocket.accept(exchange, _MAX_MESSAGE), request)
        finally:
            self._places.release_on_behalf_of(exchange)

    async def _relay(self, socket: WebSocket, request: admin.Request) -> None:
        def pass_on(reply: admin.Reply) -> None:
            if socket.ready or "events" in reply:
                socket.send_nowait([msgspec.json.encode(reply)])

        async def watch() -> None:
            with contextlib.suppress(VerbError, admin.Unreachable):
                await admin.call(self._address, request, pass_on)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            while await socket.receive() is not None:
                pass
            nursery.cancel_scope.cancel()
        await socket.close(RESTART)


def _unavailable(sentence: str) -> UserError:
    return UserError(sentence, status=503, type="server_error", code="unavailable", retry_after=1)
