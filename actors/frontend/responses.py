"""`/v1/responses` over HTTP: create, follow, retrieve, cancel, delete."""

from __future__ import annotations

import dataclasses
import urllib.parse

import msgspec

from actors.frontend import delivery, items, turns
from actors.frontend.finder import Finder, Memo
from actors.frontend.live import Conversation, LiveResponse, Reader
from actors.frontend.response_events import DELTA, Event
from actors.frontend.service import Service, new_id, read
from actors.frontend.turns import Turn
from protocols.errors import UserError
from protocols.openai.responses import ResponseDeleted
from runtime.exchange import Exchange

_DELTA_LINE = b"event: " + DELTA.encode() + b"\ndata: "


async def create(service: Service, finder: Finder, exchange: Exchange) -> None:
    """Answer `POST /v1/responses`."""
    body = await exchange.body()
    request = await read(turns.decoder, body)
    previous = await previous_conversation(finder, request.previous_response_id, service.owner)
    trace = service.trace_of(exchange, named=request.traceparent)
    turn = turns.prepare(request, service, previous, trace, len(body))
    live = await launch(service, finder, turn)
    if request.background:
        await _begun(live)
        live.start()
        await (_follow(exchange, live, 0) if request.stream else _show(exchange, live))
        return
    try:
        await _begun(live)
        live.start()
        if request.stream:
            await _follow(exchange, live, 0)
            return
        await live.generation.done.wait()
        if live.generation.error is not None:
            raise UserError.from_body(live.generation.error)
        await _show(exchange, live)
    finally:
        live.cancel()


async def retrieve(service: Service, finder: Finder, exchange: Exchange, id: str) -> None:
    """Answer `GET /v1/responses/{id}`, as a document or as the events after `starting_after`."""
    live = await finder.find(id, service.owner)
    query = urllib.parse.parse_qs(exchange.head.query)
    if query.get("stream", ["false"])[-1].lower() not in ("true", "1"):
        await _show(exchange, live)
        return
    after = query.get("starting_after", ["-1"])[-1]
    if not after.removeprefix("-").isdecimal() or len(after) > 18:
        raise UserError("starting_after must be an integer.", param="starting_after")
    await _follow(exchange, live, max(int(after) + 1, 0))


async def input_items(service: Service, finder: Finder, exchange: Exchange, id: str) -> None:
    """Answer `GET /v1/responses/{id}/input_items`."""
    live = await finder.find(id, service.owner)
    query = urllib.parse.parse_qs(exchange.head.query)
    page = items.page(live, {name: values[-1] for name, values in query.items()})
    await exchange.respond(200, msgspec.json.encode(page))


async def cancel(service: Service, finder: Finder, exchange: Exchange, id: str) -> None:
    """Answer `POST /v1/responses/{id}/cancel`."""
    live = await finder.find(id, service.owner)
    live.cancel()
    await _show(exchange, live)


async def delete(service: Service, finder: Finder, exchange: Exchange, id: str) -> None:
    """Answer `DELETE /v1/responses/{id}`; a running response ends."""
    live = await finder.find(id, service.owner)
    live.cancel()
    finder.delete(live)
    await exchange.respond(200, msgspec.json.encode(ResponseDeleted(id)))


async def previous_conversation(finder: Finder, id: str | None, owner: str) -> Conversation | None:
    """What a request of the owner continues; raises UserError when it cannot be found."""
    if id is None:
        return None
    conversation = await finder.conversation(id, owner)
    if conversation is None:
        raise UserError(
            f"Previous response with id '{id[:100]}' not found.",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    return conversation


async def launch(service: Service, finder: Finder, turn: Turn) -> LiveResponse:
    """Send a turn to the engine; the response can be found from now on. Raises UserError."""
    engine, store = service.engine, finder.store
    (rid,) = engine.slots.claim(1)
    turn.response.id = new_id(f"resp_{rid:x}_")
    memo = Memo(turn.response, new_id("msg_"), turn.silent, service.owner, turn.sealed)
    stream = turns.stream_of(
        service.config, turn.response, memo.item_id, silent=turn.silent, sealed=turn.sealed
    )
    on_over = store.keep if turn.response.store else store.forget
    live = LiveResponse(stream, turn.conversation, on_over, service.owner)
    store.run(live)
    try:
        job = dataclasses.replace(turn.job, client=memo.encode())
        live.bind(engine, await engine.start(job, live, (rid,)))
    except BaseException:
        store.forget(live)
        raise
    return live


async def _begun(live: LiveResponse) -> None:
    """Wait until the ledger has the request, so that an id that a client has seen can be resumed whoever
    dies. Raises UserError when the request is refused."""
    await live.generation.begun.wait()
    if live.generation.error is not None:
        raise UserError.from_body(live.generation.error)


async def _show(exchange: Exchange, live: LiveResponse) -> None:
    await exchange.respond(200, msgspec.json.encode(live.stream.document()))


async def _follow(exchange: Exchange, live: LiveResponse, cursor: int) -> None:
    """Stream a response's events from number `cursor` on."""
    exchange.start_nowait(200, kind=delivery.EVENT_STREAM, headers=delivery.STREAM_HEADERS)
    reader = Reader(
        live, lambda events: exchange.write_nowait(_lines(events)), lambda: exchange.ready, cursor
    )
    exchange.transport.on_drained = reader.pump
    live.follow(reader)
    exchange.flush_nowait()
    try:
        await reader.ended.wait()
        await exchange.finish()
    finally:
        live.leave(reader)
        exchange.transport.on_drained = None


def _lines(events: list[Event]) -> bytes:
    return b"".join(
        b"%b%b\n\n" % (_DELTA_LINE, event.json)
        if event.kind == DELTA
        else b"event: %b\ndata: %b\n\n" % (event.kind.encode(), event.json)
        for event in events
    )
