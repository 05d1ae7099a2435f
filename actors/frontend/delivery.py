"""From an engine's rows to a client: streamed over a socket that may be slow, or collected and sent whole.

The token path has no task switch: the mail task feeds the source and pumps it, and the pump writes to
the socket as long as the kernel takes it. While it does not, rows merge in the source; when the socket
has drained, the connection's writer pumps again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from actors.frontend.engine import Engine
from actors.frontend.generation import Generation, Sink
from actors.frontend.jobs import Job
from protocols.errors import ErrorBody, UserError
from protocols.messages import TextRow
from runtime.exchange import Exchange

EVENT_STREAM = "text/event-stream; charset=utf-8"
STREAM_HEADERS = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
PATIENCE = 1.0
"""Seconds that the head of a stream waits for the first row, so that a refusal can still be a status."""


class Source(Protocol):
    """Turns rows into a stream of bytes."""

    ended: bool

    def feed(self, index: int, row: TextRow) -> None:
        """As `Sink.feed`."""

    def fail(self, error: ErrorBody) -> None:
        """As `Sink.fail`."""

    def take(self) -> bytes:
        """What is to be sent now."""


class Delivery:
    """The sink of a streamed answer: `feed` and `fail` are its source's own."""

    def __init__(self, exchange: Exchange, source: Source) -> None:
        self._exchange = exchange
        self._source = source
        self.feed, self.fail = source.feed, source.fail
        self._over = False
        self.ended = trio.Event()

    def pump(self) -> None:
        """Send what there is, if the socket takes it."""
        if self._over or not self._exchange.ready:
            return
        try:
            data = self._source.take()
        except Exception:
            self._end()
            raise
        if data:
            self._exchange.write_nowait(data, last=self._source.ended)
        if self._source.ended:
            self._end()

    def _end(self) -> None:
        self._over = True
        self.ended.set()


async def begun(generation: Generation, seconds: float = PATIENCE) -> None:
    """Wait a moment for the first row; raises UserError when the job was refused by then."""
    with trio.move_on_after(seconds):
        await generation.begun.wait()
    if generation.error is not None:
        raise UserError.from_body(generation.error)


async def stream(
    exchange: Exchange,
    engine: Engine,
    job: Job,
    source: Source,
    before_end: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Run a job and stream what `source` makes of it; aborted when the client goes away. before_end: is done
    once all has come, and until then the source keeps the end back."""
    delivery = Delivery(exchange, source)
    generation = await engine.start(job, delivery)
    try:
        await begun(generation, PATIENCE + engine.patience)
        exchange.start_nowait(200, kind=EVENT_STREAM, headers=STREAM_HEADERS)
        exchange.transport.on_drained = delivery.pump
        delivery.pump()
        exchange.flush_nowait()
        if before_end is not None:
            await generation.done.wait()
            await before_end()
            delivery.pump()
        await delivery.ended.wait()
        if not source.ended:
            raise RuntimeError("the stream broke off")
        await exchange.finish()
    finally:
        exchange.transport.on_drained = None
        engine.abort(generation)


async def collect(engine: Engine, job: Job, sink: Sink) -> None:
    """Run a job to its end; aborted when cancelled. Raises UserError when it was refused or failed."""
    generation = await engine.start(job.whole(), sink)
    try:
        await generation.done.wait()
    finally:
        engine.abort(generation)
    if generation.error is not None:
        raise UserError.from_body(generation.error)
