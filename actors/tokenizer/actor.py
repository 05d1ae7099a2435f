"""The tokenizer actor: chat templates and encoding on the way down, text and stop strings on the way up.

    reader ─► Tokens, Abort: at once              ─► desk ─► frontends, scheduler or balancer
           └► Generate, Encode, Decode: queue ─► encoder ─┘
                                 ├► a helper process, for the template of a chat, and one for a grammar
                                 └► a thread, for long prompts (the library lets go of the GIL)

The reader never waits for a ring to drain, so whoever sends to this actor can always go on. The encoder
takes one request at a time and then lets the reader look, so a burst of prompts delays no stream by more than
one short prompt.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, assert_never

import trio

from actors.tokenizer.codec import Codec, load_codec
from actors.tokenizer.core import Core, Outgoing
from actors.tokenizer.grammar_helper import Wish
from actors.tokenizer.grammars import Grammars
from actors.tokenizer.instruments import Instruments
from actors.tokenizer.model_files import read_chat_templates
from actors.tokenizer.outgoing import Desk
from actors.tokenizer.prompt import in_thought
from actors.tokenizer.questions import Question
from actors.tokenizer.render_helper import Sources
from actors.tokenizer.renderers import Renderers
from actors.tokenizer.shorten import latest
from actors.tokenizer.template import ChatTemplate
from protocols.board import Column
from protocols.config import Config
from protocols.errors import UserError, VerbError
from protocols.messages import Abort, Decode, Encode, Generate, Replay, TokenizerMail, Tokens
from protocols.orders import Answer, Done, Know, Order
from protocols.request import ChatPrompt, TextPrompt, TokenPrompt
from protocols.spans import SpanName
from runtime.actor import Context
from runtime.cores import give_way
from runtime.failpoints import reach

T = TypeVar("T")

accepts = TokenizerMail

INLINE_CHARS = 4096
"""Prompts up to this length are tokenised on the event loop: about a millisecond."""

THREADS = 4


async def run(context: Context[TokenizerMail]) -> None:
    """Serve until asked to stop, then finish what is open. StartError without a usable tokenizer."""
    give_way()
    config, log = context.config, context.log
    with context.busy():
        codec, sources = _load_text(pathlib.Path(config.model.path))
        core = Core(config, context.index, codec, context.ledger, log)
        core.labels = context.standing.labels
    with (
        contextlib.closing(Renderers(sources, config.template_seconds, log)) as renderers,
        contextlib.closing(Grammars(config, codec, log)) as grammars,
    ):
        await _serve(context, core, renderers, grammars)


async def _serve(
    context: Context[TokenizerMail], core: Core, renderers: Renderers, grammars: Grammars
) -> None:
    async with trio.open_nursery() as nursery:
        actor = Actor(context, core, renderers, grammars, nursery)
        await actor.recover()
        reach("tokenizer.recovered")
        context.ready()
        nursery.start_soon(actor.read)
        nursery.start_soon(actor.encode)
        nursery.start_soon(context.obey, actor.obey)
        await context.stopping.wait()
        await actor.drained()
        nursery.cancel_scope.cancel()


def preload(config: Config) -> None:
    """Read ahead of the start what is the same for every incarnation."""
    _load_text(pathlib.Path(config.model.path))


@functools.cache
def _load_text(directory: pathlib.Path) -> tuple[Codec, Sources]:
    codec = load_codec(directory)
    sources = Sources(read_chat_templates(directory), codec.special_tokens)
    ChatTemplate(sources.templates, sources.special_tokens)
    return codec, sources


class Actor:
    """The tasks of one tokenizer: reading, encoding, sending."""

    def __init__(
        self,
        context: Context[TokenizerMail],
        core: Core,
        renderers: Renderers,
        grammars: Grammars,
        nursery: trio.Nursery,
    ) -> None:
        self._context = context
        self._core = core
        self._renderers = renderers
        self._grammars = grammars
        self._nursery = nursery
        self._instruments = Instruments(context.box)
        ring_bytes = context.config.ring_bytes
        self._desk = Desk(context.outbox, context.ledger, nursery, context.log, ring_bytes, self._moved)
        self._queue: deque[Generate | Question] = deque()
        self._queued = trio.Event()
        self._away = 0
        self._limiter = trio.CapacityLimiter(THREADS)
        self._movement = trio.lowlevel.ParkingLot()

    async def recover(self) -> None:
        """Send again what an earlier incarnation may not have sent."""
        with self._context.busy():
            for to, message in self._core.recover():
                self._desk.post(to, message)
                await trio.lowlevel.checkpoint()
        self._instruments.follow(self._core.sampled())

    async def obey(self, order: Order) -> Answer:
        """Carry out an order of the supervisor's."""
        match order:
            case Know(labels):
                self._core.labels = labels
                return Done()
            case _:
                raise VerbError("failed", "this is no order for a tokenizer.")

    async def read(self) -> None:
        """Take in mail, for ever."""
        while True:
            for mail in await self._context.inbox.receive():
                self._handle(mail.message)
            self._context.worked()
            self._moved()

    async def encode(self) -> None:
        """Take up requests one by one, for ever."""
        while True:
            await self._queued.wait()
            self._queued = trio.Event()
            while self._queue:
                self._take_up(self._queue.popleft())
                await trio.lowlevel.checkpoint()
            self._moved()

    async def drained(self) -> None:
        """Wait until nothing is open and everything has left."""
        while self._core.open or self._queue or self._away or not self._desk.empty:
            await self._movement.park()

    def _handle(self, message: TokenizerMail) -> None:
        match message:
            case Tokens(rows):
                start = self._instruments.begin()
                self._post(self._core.take(rows))
                if start:
                    self._instruments.detokenised(rows, start)
            case Generate() | Encode() | Decode():
                self._queue.append(message)
                self._queued.set()
            case Abort(rid):
                self._instruments.leave(rid)
                self._post(self._core.abort(message))
            case Replay():
                self._post(self._core.replay(message))
            case other:
                assert_never(other)

    def _take_up(self, message: Generate | Question) -> None:
        self._context.vitals.add(Column.REQUESTS_TOTAL, isinstance(message, Generate))
        if _takes_long(message):
            self._away += 1
            self._nursery.start_soon(self._take_up_apart, message)
        elif isinstance(message, Generate):
            start = time.monotonic_ns()
            self._post(self._core.admit(message, self._core.prepare(message)))
            self._instruments.took_up(message, SpanName.ENCODE, start)
        else:
            self._post(self._core.answer(message))

    async def _take_up_apart(self, message: Generate | Question) -> None:
        try:
            out = await self._taken_up(message)
        except UserError as error:
            out = self._core.refuse(message, error.body)
        self._away -= 1
        self._post(out)
        self._moved()

    async def _taken_up(self, message: Generate | Question) -> list[Outgoing]:
        """The request, prepared with the help of other processes and a thread. Raises UserError."""
        rendered = await self._rendered(message)
        run = self._run if _length(message) + len(rendered) > INLINE_CHARS else _at_once
        if not isinstance(message, Generate):
            return await run(self._core.answer, message, rendered)
        start = time.monotonic_ns()
        grammar = await self._grammar(message, rendered) if message.rules else ""
        out = self._core.admit(message, await run(self._core.prepare, message, rendered, grammar))
        self._instruments.took_up(message, SpanName.ENCODE, start)
        return out

    async def _run(self, call: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)

    async def _grammar(self, message: Generate, rendered: str) -> str:
        thinking = in_thought(message, rendered)
        return await self._grammars.make(Wish(message.rules, message.output.thoughts, thinking))

    async def _rendered(self, message: Generate | Question) -> str:
        """The text of a chat, "" of anything else."""
        if isinstance(message, Decode) or not isinstance(message.prompt, ChatPrompt):
            return ""
        start = time.monotonic_ns()
        rendered = await self._render(message, message.prompt)
        if isinstance(message, Generate):
            self._instruments.took_up(message, SpanName.RENDER, start)
        return rendered

    async def _render(self, message: Generate | Encode, prompt: ChatPrompt) -> str:
        if not (isinstance(message, Generate) and prompt.shorten):
            return await self._renderers.render(prompt)

        async def fits(rendered: str) -> bool:
            return await trio.to_thread.run_sync(self._core.fits, message, rendered, limiter=self._limiter)

        return await latest(prompt, self._renderers.render, fits)

    def _post(self, out: list[Outgoing]) -> None:
        for to, message in out:
            self._desk.post(to, message)

    def _moved(self) -> None:
        self._context.vitals[Column.OPEN_REQUESTS] = self._core.open
        self._movement.unpark_all()


async def _at_once(call: Callable[..., T], *args: Any) -> T:
    return call(*args)


def _takes_long(message: Generate | Question) -> bool:
    """Whether to prepare a request outside the event loop: a chat, a long prompt, or one that needs a
    grammar."""
    if not isinstance(message, Decode) and isinstance(message.prompt, ChatPrompt):
        return True
    return _length(message) > INLINE_CHARS or (isinstance(message, Generate) and bool(message.rules))


def _length(message: Generate | Question) -> int:
    """About how much text there is to tokenise; of a chat it is not known yet."""
    match message.prompt if not isinstance(message, Decode) else TokenPrompt(message.tokens):
        case ChatPrompt():
            return 0
        case TextPrompt(text):
            return len(text)
        case TokenPrompt(tokens):
            return len(tokens)
        case other:
            assert_never(other)
