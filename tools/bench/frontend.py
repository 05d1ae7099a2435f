"""`python -m tools.bench frontend`: CPU time of a frontend for each streamed delta, beside the bare syscall.

A real frontend serves real sockets; a child process holds the clients and reads all they get. Steps of one
row a stream are delivered as a tokenizer's mail, and the thread's CPU time is taken around the decoding
of the mail and around its delivery (event, frame, write). The floor is as many `send` calls of a chunk's size
to as many clients, in the same round. Nothing of the engine below is real.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import selectors
import socket
import time
from collections.abc import AsyncIterator, Iterator

import click
import trio

from actors.frontend.access import Access
from actors.frontend.engine import Engine
from actors.frontend.finder import Finder
from actors.frontend.health import Health
from actors.frontend.live import Store
from actors.frontend.routes import Routes
from actors.frontend.service import Service
from actors.frontend.socket_mode import SocketMode
from protocols.config import Config, ModelCard
from protocols.ledger import Layout
from protocols.messages import Deltas, FrontendMail, Generate, TextRow, TokenizerMail
from protocols.wire import Decoder, encode
from runtime.blackbox import BlackBox
from runtime.board import Board
from runtime.channel import Inbox, Mail
from runtime.http import HttpServer
from runtime.ledger import Ledger
from runtime.logs import configure
from runtime.memory import Exchange
from runtime.occupancy import Limits
from runtime.vault import Vault
from tools.bench.statistics import spread

WORD = " word"
FLOOR_BYTES = 200
"""About the size of a chunk with one word in it."""
KINDS = ("chat", "responses", "websocket")


@click.command()
@click.option("--streams", default=64, show_default=True)
@click.option("--steps", default=300, show_default=True, help="Deltas of each stream in a round.")
@click.option("--repeats", default=3, show_default=True)
def frontend(streams: int, steps: int, repeats: int) -> None:
    """A frontend's CPU time for a streamed delta."""
    rounds = [{kind: trio.run(_round, kind, streams, steps) for kind in KINDS} for _ in range(repeats)]
    for kind in KINDS:
        decode, deliver, floor = zip(*(one[kind] for one in rounds), strict=True)
        ratio = spread([a / b for a, b in zip(deliver, floor, strict=True)])
        click.echo(
            f"{kind:10} decode {spread(decode)} µs, deliver {spread(deliver)} µs, "
            f"bare send {spread(floor)} µs, deliver / send {ratio}"
        )


async def _round(kind: str, streams: int, steps: int) -> tuple[float, float, float]:
    """µs a row of decoding, of delivering, and of a bare send."""
    async with _world(streams) as (engine, inbox, port):
        with _clients(kind, port, streams):
            rids = await _requests(inbox, streams)
            decoder: Decoder[FrontendMail] = Decoder(FrontendMail)
            decode = deliver = 0.0
            for step in range(steps):
                record = encode(Deltas(tuple(TextRow(r, step * len(WORD), WORD, step + 1) for r in rids)))
                start = time.thread_time()
                mail = Mail("tokenizer.0", decoder(record))
                middle = time.thread_time()
                engine.deliver([mail])
                end = time.thread_time()
                decode, deliver = decode + middle - start, deliver + end - middle
                await trio.sleep(0.001)
    rows = streams * steps
    return 1e6 * decode / rows, 1e6 * deliver / rows, _bare_send(streams, steps)


@contextlib.asynccontextmanager
async def _world(streams: int) -> AsyncIterator[tuple[Engine, Inbox[TokenizerMail], int]]:
    card = ModelCard("bench", "", "", context=1 << 20, vocab_size=1000, eos=())
    config = Config(model=card)
    ledger = Ledger.create(Layout(slots=streams, tokens=64, request_bytes=4096, extra_bytes=4096))
    exchange = Exchange(("frontend.0", "tokenizer.0"), capacity=1 << 24)
    log = configure("error", "json", actor="bench", box=BlackBox.private())
    engine = Engine(0, config, ledger, exchange.outbox("frontend.0"), log)
    service, board = Service(config, engine, log, 0), Board.create(1)
    vault = Vault.create(config.frontends)
    access = Access(config, vault, 0)
    finder = Finder(engine, Store(), ledger, access.account, log, config.orphan_seconds)
    routes = Routes(service, finder, access, SocketMode(finder, access), Health(board, {}))
    with (
        contextlib.closing(ledger),
        contextlib.closing(board),
        contextlib.closing(vault),
        socket.create_server(("127.0.0.1", 0), backlog=streams) as listener,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(HttpServer(routes, Limits(), log).serve, listener)
            yield engine, exchange.inbox("tokenizer.0", TokenizerMail), listener.getsockname()[1]
            nursery.cancel_scope.cancel()


async def _requests(inbox: Inbox[TokenizerMail], streams: int) -> list[int]:
    """The ids of all streams' requests, once their answers have begun."""
    rids: list[int] = []
    while len(rids) < streams:
        rids += [m.message.rids[0] for m in await inbox.receive() if isinstance(m.message, Generate)]
    await trio.sleep(1.5)
    return rids


@contextlib.contextmanager
def _clients(kind: str, port: int, streams: int) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=_drain, args=(kind, port, streams))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _drain(kind: str, port: int, streams: int) -> None:
    """The clients: one request each, then read until the end."""
    selector = selectors.DefaultSelector()
    for _ in range(streams):
        sock = socket.create_connection(("127.0.0.1", port))
        for message in _messages(kind):
            sock.sendall(message)
        selector.register(sock, selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            if not key.fileobj.recv(1 << 20):
                selector.unregister(key.fileobj)


def _messages(kind: str) -> list[bytes]:
    if kind == "floor":
        return []
    if kind == "websocket":
        event = {"type": "response.create", "model": "bench", "input": "x", "stream_id": "lane"}
        body = json.dumps(event).encode()
        upgrade = b"GET /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        key = b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        return [upgrade + key, bytes([0x81, 0x80 | len(body)]) + bytes(4) + body]
    chat = {"model": "bench", "messages": [{"role": "user", "content": "x"}], "stream": True}
    path, document = ("/v1/chat/completions", chat)
    if kind == "responses":
        path, document = "/v1/responses", {"model": "bench", "input": "x", "stream": True}
    body = json.dumps(document).encode()
    return [f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body]


def _bare_send(streams: int, steps: int) -> float:
    """µs of one `send` of a chunk, to as many clients and in the same steps."""
    spent, chunk = 0.0, bytes(FLOOR_BYTES)
    with socket.create_server(("127.0.0.1", 0), backlog=streams) as listener, contextlib.ExitStack() as stack:
        stack.enter_context(_clients("floor", listener.getsockname()[1], streams))
        socks = [stack.enter_context(listener.accept()[0]) for _ in range(streams)]
        for sock in socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(steps):
            start = time.thread_time()
            for sock in socks:
                sock.send(chunk)
            spent += time.thread_time() - start
            time.sleep(0.001)
    return 1e6 * spent / (streams * steps)
