"""Frontends and a tokenizer without processes: real engines, finders and the tokenizer's core over a real
ledger. The test plays the scheduler, and lets any of them die and come back."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
import trio
import trio.testing

from actors.frontend import responses, turns
from actors.frontend.access import Access
from actors.frontend.engine import Engine
from actors.frontend.finder import Finder
from actors.frontend.live import LiveResponse, Store
from actors.frontend.service import Service
from actors.tokenizer.core import Core
from protocols.errors import UserError
from protocols.keys import Key, Keyring, digest_of
from protocols.ledger import Layout
from protocols.messages import Abort, FrontendMail, Generate, Replay, Submit, TokenizerMail, TokenRow
from protocols.openai.responses import ResponsesRequest
from protocols.plan import Logprobs
from protocols.request import Finish
from protocols.stored import pack_logprobs
from runtime.channel import Mail
from runtime.ledger import Ledger
from runtime.memory import Exchange
from runtime.vault import Vault
from tests.actors.tokenizer.parts import codec_of, config_of, rendered

TOKENS = 200


class Frontend:
    """One incarnation of a frontend, without its sockets."""

    def __init__(self, edge: Edge, index: int) -> None:
        log = structlog.get_logger()
        self.engine = Engine(index, edge.config, edge.ledger, edge.exchange.outbox(f"frontend.{index}"), log)
        self.access = Access(edge.config, edge.vault, index)
        self._service = Service(edge.config, self.engine, log, 0)
        self.finder = Finder(
            self.engine,
            Store(),
            edge.ledger,
            self.access.account,
            log,
            edge.config.orphan_seconds,
        )

    def service(self, key: str) -> Service:
        """What handles the requests of a key, of nobody's with ""."""
        account = self.access.account(key)
        return self._service.charged_to(account) if account is not None else self._service


class Edge:
    """`frontends` frontends and tokenizer.0. submits: what went down, by request id. keys: names."""

    def __init__(
        self, *, frontends: int = 1, kind: str = "byte_level", keys: tuple[str, ...] = (), **options: Any
    ) -> None:
        self.kind = kind
        self.config = config_of(codec_of(kind), frontends=frontends, **options)
        self.ledger = Ledger.create(Layout(8, TOKENS, 1 << 16, 1 << 18), frontends)
        self.vault = Vault.create(frontends)
        self.vault.publish(Keyring(bool(keys), tuple(Key(name, digest_of(name)) for name in keys)))
        names = [f"frontend.{i}" for i in range(frontends)]
        edges = [edge for name in names for edge in ((name, "tokenizer.0"), ("tokenizer.0", name))]
        self.exchange = Exchange(*edges, capacity=1 << 22)
        self._inbox = self.exchange.inbox("tokenizer.0", TokenizerMail)
        self._outbox = self.exchange.outbox("tokenizer.0")
        self.core = self._new_core()
        self.frontends = [Frontend(self, i) for i in range(frontends)]
        self.submits: dict[int, Submit] = {}
        self.down: list[Any] = []

    def close(self) -> None:
        self.ledger.close()
        self.vault.close()

    def _new_core(self) -> Core:
        return Core(self.config, 0, codec_of(self.kind), self.ledger, structlog.get_logger())

    async def kill(self, index: int) -> None:
        """The frontend dies, and its successor takes over; its unread mail stays where it is."""
        self.frontends[index] = Frontend(self, index)
        await self.frontends[index].finder.take_over()

    async def kill_tokenizer(self) -> None:
        """The tokenizer dies with the mail that it has read."""
        self.core = self._new_core()
        self._send(list(self.core.recover()))
        for frontend in self.frontends:
            await frontend.engine.resend(0)

    async def create(self, index: int, text: str = "Hello", *, key: str = "", **fields: Any) -> LiveResponse:
        """A response that has begun."""
        request = ResponsesRequest(model="m", input=text, **fields)
        frontend = self.frontends[index]
        service = frontend.service(key)
        previous = await responses.previous_conversation(frontend.finder, request.previous_response_id, key)
        turn = turns.prepare(request, service, previous, "", len(text))
        live = await responses.launch(service, frontend.finder, turn)
        self.turn()
        self.read(index)
        assert live.generation.begun.is_set()
        live.start()
        return live

    async def find(self, index: int, id: str, key: str = "") -> LiveResponse:
        """What a client's GET does at a frontend. Raises UserError."""
        found: list[LiveResponse | UserError] = []

        async def look() -> None:
            try:
                found.append(await self.frontends[index].finder.find(id, key))
            except UserError as error:
                found.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
            while not found:
                self.turn()
                self.read(index)
                await trio.testing.wait_all_tasks_blocked()
        if isinstance(found[0], UserError):
            raise found[0]
        return found[0]

    def turn(self) -> None:
        """The tokenizer reads its mail."""
        try:
            mails = self._inbox.receive_nowait()
        except trio.WouldBlock:
            return
        for mail in mails:
            match mail.message:
                case Generate() as generate:
                    prompted = self.core.prepare(generate, rendered(generate.prompt))
                    self._send(self.core.admit(generate, prompted))
                case Replay() as replay:
                    self._send(self.core.replay(replay))
                case Abort() as abort:
                    self._send(self.core.abort(abort))
                case other:
                    raise AssertionError(other)

    def read(self, index: int) -> None:
        """A frontend reads its mail."""
        inbox = self.exchange.inbox(f"frontend.{index}", FrontendMail)
        try:
            mails: list[Mail[Any]] = inbox.receive_nowait(1000)
        except trio.WouldBlock:
            return
        self.frontends[index].engine.deliver(mails)

    def commit(
        self, rid: int, tokens: list[int], finish: Finish = Finish.NONE, *, cached: int = 0
    ) -> TokenRow:
        """What the scheduler does with tokens, logprobs with those who asked."""
        start = len(self.ledger.committed(rid))
        logprobs: tuple[Logprobs, ...] = ()
        if self.submits[rid].sampling.logprobs is not None:
            logprobs = tuple(Logprobs(-token / 8, (token,), (-0.5,)) for token in tokens)
        stops = self.submits[rid].sampling.stop_token_ids
        self.ledger.commit(rid, tokens, pack_logprobs(logprobs) if logprobs else b"", finish, cached)
        stop_token = tokens[-1] if finish is Finish.STOP and tokens[-1] in stops else -1
        return TokenRow(rid, start, tuple(tokens), finish, cached, logprobs, stop_token)

    def take(self, *rows: TokenRow) -> None:
        """Tokens come to the tokenizer."""
        self._send(self.core.take(rows))

    def _send(self, outgoing: list[Any]) -> None:
        for to, message in outgoing:
            if to.startswith("frontend"):
                self._outbox.send_nowait(to, message)
                served = [(row.rid, row.tokens) for row in getattr(message, "rows", ())]
                self.ledger.set_delivered(served, int(to.removeprefix("frontend.")))
                continue
            self.down.append(message)
            if isinstance(message, Submit):
                self.submits[message.rid] = message


def documents(live: LiveResponse, start: int = 0) -> list[dict[str, Any]]:
    """Its events from number `start` on, but for what each process tells by its own clock."""
    found = [msgspec.json.decode(event.json) for event in live.stream.take(start, 10_000)]
    for event in found:
        event.get("response", {}).pop("completed_at", None)
    return found
