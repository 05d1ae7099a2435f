"""The Responses API over a WebSocket: client events in, the events of every lane's response out.

The session's task only reads; it answers pings and takes requests however slow the client reads. Each
running response has a task that waits for its end; its events are written by the mail task, or when
the socket has drained. When the client goes away, what it created is cancelled and aborted; what it
resumed was created elsewhere, and only loses a reader.
"""

from __future__ import annotations

import contextlib
import secrets
import urllib.parse
from typing import Any, assert_never

import msgspec
import trio

from actors.frontend import responses, turns
from actors.frontend.access import NO_LONGER, Access
from actors.frontend.finder import Finder
from actors.frontend.lanes import MAX_NAMED, Create, Lanes, lane_of
from actors.frontend.live import Conversation, LiveResponse, Reader
from actors.frontend.response_events import Event
from actors.frontend.response_stream import Phase
from actors.frontend.service import Service, read
from protocols.errors import ErrorBody, UserError, overloaded
from protocols.openai.body import ErrorDetail
from protocols.openai.responses import CancelEvent, Envelope, ResponsesRequest, ResumeEvent, SteerEvent
from runtime.exchange import Exchange
from runtime.websocket import CLOSE_SECONDS, WebSocket

_envelope = msgspec.json.Decoder(Envelope)
_steer = msgspec.json.Decoder(SteerEvent)
_cancel = msgspec.json.Decoder(CancelEvent)
_resume = msgspec.json.Decoder(ResumeEvent)
RESTART = 1012
TRY_AGAIN_LATER = 1013
INTERNAL_ERROR = 1011
POLICY = 1008


class SocketMode:
    """All WebSocket sessions of a frontend."""

    def __init__(self, finder: Finder, access: Access) -> None:
        self._finder = finder
        self._access = access
        self._sessions: set[Session] = set()
        self._stopping = False

    async def serve(self, service: Service, exchange: Exchange) -> None:
        """Answer a handshake at `/v1/responses` and serve the socket until it closes."""
        if self._stopping:
            raise overloaded("The server is restarting.")
        with service.account.connected() if service.account is not None else contextlib.nullcontext():
            socket = WebSocket.accept(exchange, service.config.max_body)
            session = Session(service, self._finder, self._access, socket, exchange)
            self._sessions.add(session)
            try:
                await session.run()
            finally:
                self._sessions.discard(session)

    @property
    def open(self) -> int:
        """Sessions."""
        return len(self._sessions)

    def stop(self) -> None:
        """Let every session finish what runs, then close it with 1012."""
        self._stopping = True
        for session in self._sessions:
            session.stop()


class Session:
    """One socket."""

    def __init__(
        self, service: Service, finder: Finder, access: Access, socket: WebSocket, exchange: Exchange
    ) -> None:
        self._service = service
        self._finder = finder
        self._access = access
        self._socket = socket
        self._exchange = exchange
        self._model = urllib.parse.parse_qs(exchange.head.query).get("model", [None])[-1]
        most = service.account.key.limits.lanes if service.account is not None else 0
        self._lanes = Lanes(4 * service.config.max_body, most or MAX_NAMED)
        self._readers: dict[LiveResponse, tuple[Reader, str | None]] = {}
        self._reading = trio.CancelScope()
        self._stopping = False
        self._exchange = exchange
        self._code = RESTART

    async def run(self) -> None:
        """Serve until the socket closes, the client goes away, the server restarts or needs the place."""
        self._socket.transport.on_drained = self._pump
        self._exchange.rest(self._give_way)
        try:
            async with trio.open_nursery() as nursery:
                with self._reading:
                    self._code = await self._read(nursery)
                nursery.cancel_scope.cancel()
        except Exception:
            self._service.log.exception("session_failed")
            self._code = INTERNAL_ERROR
        finally:
            self._socket.transport.on_drained = None
            self._exchange.work(self._give_way)
        await self._socket.close(self._code, seconds=0 if self._code == TRY_AGAIN_LATER else CLOSE_SECONDS)

    def _give_way(self) -> None:
        """Others need the place of this socket, which has nothing to do."""
        self._exchange.work(self._give_way)
        self._code = TRY_AGAIN_LATER
        self._reading.cancel()

    def stop(self) -> None:
        """Finish what runs, take nothing new, then close."""
        self._stopping = True
        if self._lanes.idle:
            self._reading.cancel()

    async def _read(self, nursery: trio.Nursery) -> int:
        """Take in events until the client goes away or its key does; the code to close with."""
        while (text := await self._socket.receive()) is not None:
            lane: str | None = None
            if not self._access.holds(self._service.account):
                self._send_error(NO_LONGER.body, None)
                return POLICY
            try:
                envelope = await read(_envelope, text)
                lane = lane_of(envelope.stream_id)
                await self._handle(envelope.type, text, nursery)
            except UserError as error:
                self._send_error(error.body, lane)
        return RESTART

    async def _handle(self, kind: str, text: str, nursery: trio.Nursery) -> None:
        match kind:
            case "response.create":
                self._offer(await self._create(text), nursery)
            case "response.resume":
                resume = await read(_resume, text)
                self._offer(Create(resume.stream_id, resume, len(text)), nursery)
            case "response.steer":
                self._refuse_steering(await read(_steer, text))
            case "response.cancel":
                self._cancel((await read(_cancel, text)).response_id)
            case other:
                raise UserError(
                    f"'{other[:100]}' is not a client event.", param="type", code="invalid_event_type"
                )

    async def _create(self, text: str) -> Create:
        request = await read(turns.decoder, text)
        if request.model is None:
            request.model = self._model
        return Create(request.stream_id, request, len(text))

    def _offer(self, create: Create, nursery: trio.Nursery) -> None:
        if self._stopping:
            raise overloaded("The server is restarting.")
        self._lanes.offer(create)
        self._exchange.work(self._give_way)
        self._start(nursery)

    def _start(self, nursery: trio.Nursery) -> None:
        for create in self._lanes.start():
            nursery.start_soon(self._respond, create, nursery)
        self._socket.keep(self._lanes.held)
        if not self._socket.open:
            self._reading.cancel()
        if self._lanes.idle:
            self._exchange.rest(self._give_way)

    async def _respond(self, create: Create, nursery: trio.Nursery) -> None:
        """Run one request to its end, then let the next ones begin."""
        try:
            match create.request:
                case ResponsesRequest() as request:
                    await self._run_new(create, request)
                case ResumeEvent() as resume:
                    live = await self._finder.find(resume.response_id, self._service.owner)
                    await self._follow(create.lane, live, max(resume.starting_after + 1, 0))
                case other:
                    assert_never(other)
        except UserError as error:
            self._send_error(error.body, create.lane)
        self._lanes.end(create.lane)
        self._start(nursery)
        if self._stopping:
            self.stop()

    async def _run_new(self, create: Create, request: ResponsesRequest) -> None:
        previous = await self._previous(request.previous_response_id)
        trace = self._service.trace_of(self._exchange, secrets.token_hex(16), request.traceparent)
        turn = turns.prepare(request, self._service, previous, trace, create.size)
        live = await responses.launch(self._service, self._finder, turn)
        try:
            await live.generation.begun.wait()
            live.start()
            await self._follow(create.lane, live, 0)
        finally:
            live.cancel()

    async def _follow(self, lane: str | None, live: LiveResponse, cursor: int) -> None:
        """Stream a response's events from number `cursor` on, on a lane that may continue it then."""
        if live in self._readers:
            raise UserError(
                f"Response with id '{live.id[:100]}' is followed on this connection already.",
                code="response_already_followed",
                param="response_id",
            )
        reader = Reader(live, self._writer(lane), lambda: self._socket.ready, cursor)
        self._readers[live] = (reader, lane)
        live.follow(reader)
        try:
            await reader.ended.wait()
        finally:
            del self._readers[live]
            live.leave(reader)
        conversation = live.conversation()
        if live.stream.phase is not Phase.FAILED and conversation is not None:
            self._lanes.remember(lane, live.id, conversation)

    async def _previous(self, id: str | None) -> Conversation | None:
        recalled = self._lanes.recall(id) if id is not None else None
        if recalled is not None:
            return recalled
        return await responses.previous_conversation(self._finder, id, self._service.owner)

    def _writer(self, lane: str | None) -> Any:
        """Writes a response's events, each with the lane's name."""
        if lane is None:
            return lambda events: self._socket.send_nowait([event.json for event in events])
        end = b',"stream_id":"%b"}' % lane.encode()

        def write(events: list[Event]) -> None:
            self._socket.send_nowait([event.json[:-1] + end for event in events])

        return write

    def _pump(self) -> None:
        for reader, _ in list(self._readers.values()):
            reader.pump()

    def _cancel(self, id: str) -> None:
        live = next((live for live in self._readers if live.id == id), None)
        if live is None:
            raise UserError(
                f"Response with id '{id[:100]}' is not running on this connection.",
                status=404,
                code="response_not_found",
                param="response_id",
            )
        live.cancel()

    def _refuse_steering(self, steer: SteerEvent) -> None:
        lanes = [lane for live, (_, lane) in self._readers.items() if live.id == steer.previous_response_id]
        error = {
            "type": "invalid_request_error",
            "code": "steering_not_supported",
            "message": "This model does not support steering.",
        }
        given = {"input": steer.input, "previous_response_id": steer.previous_response_id}
        event = {"type": "response.steer.failed", "sequence_number": 0, "error": error, "steer": given}
        self._send(event, lanes[0] if lanes else None)

    def _send_error(self, body: ErrorBody, lane: str | None) -> None:
        detail = ErrorDetail(body.message, body.type, body.param, body.code)
        self._send({"type": "error", "status": body.status, "error": detail}, lane)

    def _send(self, event: dict[str, Any], lane: str | None) -> None:
        if lane is not None:
            event["stream_id"] = lane
        self._socket.send_nowait([msgspec.json.encode(event)])
