"""A frontend with everything real but the engine behind it: TCP on loopback, ledger, board, mail.

`FakeEngine` stands for tokenizer, scheduler and executor. On its own it answers every request with the
last words of its prompt, one word a token; in manual mode a test says which row comes when.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import structlog
import trio

from actors.frontend import actor
from protocols.board import Column, State
from protocols.config import Config, ModelCard
from protocols.errors import ErrorBody
from protocols.keys import digest_of
from protocols.ledger import Layout
from protocols.messages import (
    Abort,
    Deltas,
    Generate,
    Refused,
    Replay,
    Submit,
    TextLogprob,
    TextRow,
    TokenizerMail,
    Tokens,
)
from protocols.request import ChatPrompt, Finish, TextPrompt, TokenPrompt, Usage
from protocols.sampling import SamplingParams
from protocols.stored import StoredRequest
from protocols.wire import encode
from runtime.actor import Context
from runtime.board import Board
from runtime.ledger import Ledger
from runtime.memory import Exchange
from runtime.vault import Vault, load_keys

CARD = ModelCard("tiny", "/nowhere", "Tiny", context=512, vocab_size=1000, eos=(0,))
ROWS = ("frontend.0", "tokenizer.0", "scheduler.0", "executor.0")


def words_of(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> list[str]:
    """What the fake model says to a prompt."""
    match prompt:
        case ChatPrompt(messages=messages):
            text = json.loads(messages)[-1]["content"]
        case TextPrompt(text=text):
            pass
        case TokenPrompt(tokens=tokens):
            text = f"{len(tokens) // 4} tokens"
    return [word if i == 0 else f" {word}" for i, word in enumerate(text.split())]


class FakeEngine:
    """The company below the frontend. manual: a test sends the rows."""

    def __init__(self, exchange: Exchange, ledger: Ledger, tokenizers: int) -> None:
        self._names = [f"tokenizer.{i}" for i in range(tokenizers)]
        self._inboxes = {name: exchange.inbox(name, TokenizerMail) for name in self._names}
        self._outboxes = {name: exchange.outbox(name) for name in self._names}
        self._home: dict[int, str] = {}
        self._offsets: dict[int, int] = {}
        self._tokens: dict[int, int] = {}
        self._said: dict[int, list[TextRow]] = {}
        self._requests: list[Generate] = []
        self._came = trio.Event()
        self.ledger = ledger
        self.manual = False
        self.refusal: ErrorBody | None = None
        self.generates: list[Generate] = []
        self.aborted: list[int] = []
        self.replays: list[int] = []

    async def run(self, name: str) -> None:
        """Play tokenizer `name`."""
        while True:
            for mail in await self._inboxes[name].receive():
                match mail.message:
                    case Generate() as generate:
                        await self._take(name, generate)
                    case Replay(rid=rid, origin=origin):
                        self.replays.append(rid)
                        if rid in self._said:
                            await self._outboxes[name].send(
                                f"frontend.{origin}", Deltas(tuple(self._said[rid]))
                            )
                        else:
                            gone = Refused(rid, ErrorBody(404, "Gone."))
                            await self._outboxes[name].send(f"frontend.{origin}", gone)
                    case Tokens():
                        pass
                    case Abort(rid=rid):
                        self.aborted.append(rid)
                        if self.ledger.is_current(rid) and self.ledger.finish(rid) is Finish.NONE:
                            self.ledger.commit(rid, [], finish=Finish.ABORT)
            self._wake()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until mail has made a condition true."""
        while not condition():
            await self._came.wait()

    async def next(self) -> Generate:
        """The next request that nobody has answered."""
        await self.until(lambda: bool(self._requests))
        return self._requests.pop(0)

    async def say(self, rid: int, text: str, **fields: Any) -> None:
        """One row; `fields` as `row` takes them."""
        await self.send(self.row(rid, text, **fields))

    def row(
        self,
        rid: int,
        text: str,
        *,
        finish: Finish = Finish.NONE,
        tokens: int = 1,
        offset: int | None = None,
        **fields: Any,
    ) -> TextRow:
        """A row as a tokenizer makes it; committed as a scheduler commits."""
        if offset is None:
            offset = self._offsets.get(rid, 0)
            self._offsets[rid] = offset + len(text)
        first = self._tokens.get(rid, 0)
        self._tokens[rid] = first + tokens
        if finish is not Finish.NONE and self.ledger.is_current(rid):
            self.ledger.commit(rid, [1] * self._tokens[rid], finish=finish)
        usage = Usage(7, self._tokens[rid], 3)
        return TextRow(rid, offset, text, self._tokens[rid], finish, usage=usage, first_token=first, **fields)

    async def send(self, *rows: TextRow) -> None:
        """Rows of one message."""
        for row in rows:
            self._said.setdefault(row.rid, []).append(row)
        await self._outboxes[self._home[rows[0].rid]].send("frontend.0", Deltas(rows))

    async def refuse(self, rid: int, error: ErrorBody) -> None:
        """The request never ran."""
        await self._outboxes[self._home[rid]].send("frontend.0", Refused(rid, error))

    async def _take(self, name: str, generate: Generate) -> None:
        self.generates.append(generate)
        for rid in generate.rids:
            self._home[rid] = name
        if self.refusal is not None:
            await self.refuse(generate.rids[0], self.refusal)
            self._wake()
            return
        if generate.client:
            await self._store(generate)
        if self.manual:
            self._requests.append(generate)
        else:
            for choice, rid in enumerate(generate.rids):
                await self.answer(generate, rid, choice)
        self._wake()

    async def _store(self, generate: Generate) -> None:
        """What a tokenizer does first of all with a request that can be resumed."""
        (rid,) = generate.rids
        record = encode(StoredRequest(generate, Submit(rid, 0, 0, b"", SamplingParams())))
        if self.ledger.is_current(rid) and len(record) <= self.ledger.layout.request_bytes:
            self.ledger.put_request(rid, record)
        await self.send(TextRow(rid, 0, "", 0))

    async def answer(self, generate: Generate, rid: int, choice: int = 0) -> None:
        """Say the words of the prompt, with what the request asked for."""
        words = words_of(generate.prompt)
        asked = generate.sampling.max_tokens
        limit = asked if asked is not None else generate.default_tokens or 64
        if limit == 0:
            await self.say(rid, "", finish=Finish.LENGTH, tokens=0)
        said = words[:limit]
        for i, word in enumerate(said):
            text = f"{word}#{choice}" if choice else word
            finish = Finish.NONE
            if i == len(said) - 1:
                finish = Finish.LENGTH if len(words) > limit else Finish.STOP
            await self.say(rid, text, finish=finish, **self._extras(generate, text, i))

    def _extras(self, generate: Generate, text: str, number: int) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if generate.sampling.logprobs is not None:
            top = tuple((f"t{k}", b"t", -1.0 * k) for k in range(generate.sampling.logprobs))
            extras["logprobs"] = (TextLogprob((text, text.encode(), -0.5), top),)
        if generate.output.token_ids:
            extras["token_ids"] = (number,)
        return extras

    def _wake(self) -> None:
        self._came.set()
        self._came = trio.Event()


@dataclasses.dataclass
class World:
    """A running frontend."""

    port: int
    engine: FakeEngine
    context: Context[Any]
    board: Board
    ledger: Ledger
    stopped: trio.Event
    vault: Vault

    @property
    def url(self) -> str:
        """Base of all addresses."""
        return f"http://127.0.0.1:{self.port}"

    def open_slots(self) -> int:
        """Open ledger slots."""
        return len(self.ledger.open_rids())

    async def begin(self, path: str, body: Any, *headers: str) -> tuple[Raw, Generate]:
        """A client's request has reached the engine, of which the test itself says the rows."""
        self.engine.manual = True
        client = await Raw.connect(self.port)
        await client.post(path, body, *headers)
        return client, await self.engine.next()

    async def all_free(self) -> None:
        """Wait until every slot is free again."""
        while self.open_slots():
            await trio.sleep(0.005)


@contextlib.asynccontextmanager
async def world(
    *, slots: int = 64, orphans: int = 0, linger_seconds: float = 0.0, **options: Any
) -> AsyncIterator[World]:
    """A frontend that serves on a free port of the loopback interface."""
    options["api_keys"] = tuple(digest_of(key) for key in options.get("api_keys", ()))
    config = Config(model=CARD, linger_seconds=linger_seconds, **options)
    vault = Vault.create(config.frontends)
    vault.publish(load_keys(config))
    ledger = Ledger.create(Layout(slots=slots, tokens=8192, request_bytes=4096, extra_bytes=4096))
    board = Board.create(len(ROWS))
    rows = {name: i for i, name in enumerate(ROWS)}
    for name, index in rows.items():
        board.row(index)[Column.INCARNATION] = 1
        if name != "frontend.0":
            board.row(index)[Column.STATE] = State.READY
    names = [f"tokenizer.{i}" for i in range(config.tokenizers)]
    edges = [edge for name in names for edge in (("frontend.0", name), (name, "frontend.0"))]
    exchange = Exchange(*edges, capacity=1 << 24)
    listener = socket.create_server(("127.0.0.1", 0))
    context = Context(
        name="frontend.0",
        index=0,
        incarnation=1,
        config=config,
        inbox=exchange.inbox("frontend.0", actor.accepts),
        outbox=exchange.outbox("frontend.0"),
        vitals=board.row(0),
        board=board,
        rows=rows,
        ledger=ledger,
        log=structlog.get_logger(),
        listener=listener,
        vault=vault,
    )
    for _ in range(orphans):
        ledger.claim(0)
    engine, stopped = FakeEngine(exchange, ledger, config.tokenizers), trio.Event()

    async def frontend() -> None:
        await actor.run(context)
        stopped.set()

    with listener, contextlib.closing(board), contextlib.closing(ledger), contextlib.closing(vault):
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(engine.run, name)
            nursery.start_soon(frontend)
            try:
                yield World(listener.getsockname()[1], engine, context, board, ledger, stopped, vault)
            finally:
                nursery.cancel_scope.cancel()


class Raw:
    """A socket that says exactly what a test wants."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    @classmethod
    async def connect(cls, port: int) -> Raw:
        """Connect to the frontend."""
        return cls(await trio.open_tcp_stream("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        """Say something."""
        await self.stream.send_all(data)

    async def post(self, path: str, body: Any, *headers: str) -> None:
        """A request; `body` is encoded unless it is bytes."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(data)}", *headers, "", ""]
        await self.send("\r\n".join(lines).encode() + data)

    async def get(self, path: str, *headers: str, method: str = "GET") -> None:
        """A request without a body."""
        lines = [f"{method} {path} HTTP/1.1", "host: x", *headers, "", ""]
        await self.send("\r\n".join(lines).encode())

    async def until(self, mark: bytes) -> bytes:
        """Read up to and including `mark`."""
        while mark not in self.buffer:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError(self.buffer.decode(errors="replace"))
            self.buffer += data
        head, _, self.buffer = self.buffer.partition(mark)
        return head + mark

    async def to_eof(self) -> bytes:
        """Everything until the server closes."""
        async for data in self.stream:
            self.buffer += data
        return self.buffer

    async def answer(self) -> Answer:
        """One answer with a content-length."""
        head = await self.until(b"\r\n\r\n")
        status, *lines = head.decode().strip().split("\r\n")
        headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self.buffer) < length:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return Answer(int(status.split()[1]), headers, body)

    async def event(self) -> Any:
        """The document of the next `data:` line of an event stream; None for `[DONE]`."""
        await self.until(b"data: ")
        line = (await self.until(b"\n\n")).strip()
        return None if line == b"[DONE]" else json.loads(line)

    async def aclose(self) -> None:
        """Hang up."""
        await self.stream.aclose()


class Socket:
    """A WebSocket client of the Responses API that sees every event."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw

    @classmethod
    async def connect(cls, port: int, *headers: str, path: str = "/v1/responses") -> Socket:
        """Open a socket."""
        raw = await Raw.connect(port)
        key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="
        upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", key)
        await raw.get(path, *upgrade, *headers)
        head = await raw.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return cls(raw)

    async def frame(self, opcode: int, data: bytes) -> None:
        """One masked frame."""
        size = struct.pack("!BQ", 0xFF, len(data)) if len(data) > 125 else bytes([0x80 | len(data)])
        await self.raw.send(bytes([0x80 | opcode]) + size + bytes(4) + data)

    async def send(self, event: Any) -> None:
        """A client event; bytes go as they are."""
        await self.frame(1, event if isinstance(event, bytes) else msgspec.json.encode(event))

    async def create(self, text: str = "one two", **fields: Any) -> None:
        """A `response.create`."""
        await self.send({"type": "response.create", "model": "tiny", "input": text, **fields})

    async def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        while len(self.raw.buffer) < count:
            data = await self.raw.stream.receive_some(65536)
            if not data:
                raise EOFError
            self.raw.buffer += data
        data, self.raw.buffer = self.raw.buffer[:count], self.raw.buffer[count:]
        return data

    async def any_frame(self) -> tuple[int, bytes]:
        """The next frame."""
        first, size = await self.take(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self.take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.take(8))
        return first & 15, await self.take(size)

    async def event(self) -> Any:
        """The next server event."""
        opcode, data = await self.any_frame()
        assert opcode == 1, (opcode, data)
        return json.loads(data)

    async def events(self) -> list[Any]:
        """The events up to the next terminal one."""
        seen = [await self.event()]
        while seen[-1]["type"] not in TERMINAL:
            seen.append(await self.event())
        return seen

    async def close_code(self) -> int:
        """The code of the close frame that comes next."""
        opcode, data = await self.any_frame()
        assert opcode == 8, (opcode, data)
        return int(struct.unpack("!H", data[:2])[0])

    async def aclose(self) -> None:
        """Hang up."""
        await self.raw.aclose()


TERMINAL = {"response.completed", "response.failed", "response.incomplete", "error"}


@dataclasses.dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as a document."""
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The inner object of an error document."""
        return self.json["error"]


async def ask(port: int, path: str, body: Any, *headers: str) -> Answer:
    """One POST on a connection of its own."""
    raw = await Raw.connect(port)
    try:
        await raw.post(path, body, *headers)
        return await raw.answer()
    finally:
        await raw.aclose()


async def look(port: int, path: str, *headers: str, method: str = "GET") -> Answer:
    """One request without a body on a connection of its own."""
    raw = await Raw.connect(port)
    try:
        await raw.get(path, *headers, method=method)
        if method == "HEAD":
            head = await raw.until(b"\r\n\r\n")
            return Answer(int(head.split()[1]), {}, b"")
        return await raw.answer()
    finally:
        await raw.aclose()


def chat_body(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}
