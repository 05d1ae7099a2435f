"""Finds a response by its id: in this process, or through the ledger where another process began it.

    id ─► store? ──────────────────────────────► LiveResponse
       └► ledger slot ─► memo ─► adopt, replay ─┘

The id of a response names its ledger slot, and the request's record there holds the frontend's memo: the
document, the id of the item. With it and the tokens, replayed by the tokenizer, any frontend makes the same
numbered events. The random part of the id must be the memo's, so ids cannot be guessed.

A response belongs to the key that made it: for every other key there is none of that id, wherever it is.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from actors.frontend.accounts import Account
from actors.frontend.engine import Engine
from actors.frontend.live import Conversation, LiveResponse, Store
from actors.frontend.prompts import Message
from actors.frontend.turns import stream_of
from protocols.errors import PeerError, UserError
from protocols.messages import Generate
from protocols.openai.responses import Response
from protocols.request import ChatPrompt, Finish
from protocols.stored import decode_stored
from protocols.wire import Decoder
from runtime.ledger import Ledger, StaleRequest

CATCH_UP = 10.0
"""Seconds that a request waits at most for what a response has said before."""
NOTE_EVERY = 1.0
"""Seconds between two notes in the ledger that a client follows; a quarter of `orphan_seconds` if less."""
_ID = re.compile(r"resp_([0-9a-f]{1,16})_[0-9a-f]{32}")
_messages = msgspec.json.Decoder(list[Message])


class Memo(msgspec.Struct, frozen=True, array_like=True):
    """What makes a response's events, besides its tokens. response: the document before all events.
    owner: see LiveResponse; sealed: see Items."""

    response: Response
    item_id: str
    silent: bool
    owner: str = ""
    sealed: bool = False

    def encode(self) -> bytes:
        """For `Generate.client`."""
        return msgspec.msgpack.encode(self)


_memo: Decoder[Memo] = Decoder(Memo)


class Finder:
    """All responses that this frontend can answer for. accounts: finds a key's by its name.
    orphan_seconds: see Config."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        ledger: Ledger,
        accounts: Callable[[str], Account | None],
        log: Any,
        orphan_seconds: float,
    ) -> None:
        self.store = store
        self._engine = engine
        self._ledger = ledger
        self._accounts = accounts
        self._log = log
        self._note_every = min(NOTE_EVERY, orphan_seconds / 4)
        self._adopted: dict[LiveResponse, int] = {}

    async def find(self, id: str, owner: str) -> LiveResponse:
        """The owner's response, with all that it has said so far; raises UserError 404."""
        live = self.store.get(id) or await self._adopt(id, owner)
        if live.owner != owner:
            raise not_found(id)
        rid = self._adopted.get(live)
        if rid is not None:
            self._followed(rid)
            with trio.move_on_after(CATCH_UP):
                await live.generation.begun.wait()
                if self._finished(rid):
                    await live.generation.done.wait()
        return live

    async def conversation(self, id: str, owner: str) -> Conversation | None:
        """The conversation that a stored response of the owner ends; None when it cannot be continued."""
        try:
            await self.find(id, owner)
        except UserError:
            return None
        return self.store.conversation(id)

    def delete(self, live: LiveResponse) -> None:
        """Forget a response that is over."""
        self.store.delete(live.id)
        self._engine.slots.forget(_rid(live.id))

    async def take_over(self) -> int:
        """After the death of an earlier incarnation: keep its responses for their clients, and abort
        what no client can come back for. Returns the number of choices aborted.

        Oldest first: what has finished gives way to new requests in that order, and the clients of the
        latest are those that have not heard the end.
        """
        aborted = 0
        left = [(rid, self._generate(rid)) for rid in self._engine.slots.left_behind()]
        for rid, generate in sorted(left, key=lambda each: each[1].arrived_ns if each[1] else 0):
            memo = self._memo(generate)
            if memo is None:
                aborted += 1
                self._engine.slots.leave(rid, aborted=True)
                continue
            account = None if self._ledger.lingers(rid) else self._accounts(memo.owner)
            settle = account.inherit(self._ledger, rid) if account is not None else None
            self._engine.slots.adopt(rid, forever=memo.response.background, settle=settle)
            if memo.response.background:
                await self._adopt(memo.response.id, memo.owner)
        return aborted

    async def note(self) -> None:
        """Write into the ledger, for ever, which adopted responses are followed here."""
        while True:
            for live, rid in list(self._adopted.items()):
                if live.followed:
                    self._followed(rid)
                if live.generation.done.is_set():
                    del self._adopted[live]
            await trio.sleep(self._note_every)

    async def _adopt(self, id: str, owner: str) -> LiveResponse:
        """Follow a response that another process began. Raises UserError 404."""
        rid = _rid(id)
        generate = self._generate(rid)
        memo = self._memo(generate)
        if generate is None or memo is None or not hmac.compare_digest(memo.response.id, id):
            raise not_found(id)
        if memo.owner != owner:
            raise not_found(id)
        stream = stream_of(
            self._engine.config, memo.response, memo.item_id, silent=memo.silent, sealed=memo.sealed
        )
        on_over = self.store.keep if memo.response.store else self.store.forget
        live = LiveResponse(stream, _conversation(generate, memo), on_over, memo.owner)
        generation = self._engine.adopt(generate, live)
        live.bind(self._engine, generation)
        live.start()
        self.store.run(live)
        self._adopted[live] = rid
        try:
            await self._engine.ask_again(generation)
        except BaseException:
            self._engine.discard(generation)
            self.store.forget(live)
            del self._adopted[live]
            raise
        self._log.info("response_adopted", rid=rid)
        return live

    def _generate(self, rid: int) -> Generate | None:
        """The request as its frontend made it, as far as the ledger has it."""
        try:
            record = self._ledger.request(rid)
            return decode_stored(record).generate if record else None
        except (StaleRequest, PeerError):
            return None

    def _memo(self, generate: Generate | None) -> Memo | None:
        if generate is None or not generate.client:
            return None
        try:
            return _memo(generate.client)
        except PeerError as error:
            self._log.error("memo_bad", rid=generate.rids[0], error=str(error))
            return None

    def _followed(self, rid: int) -> None:
        try:
            self._ledger.follow(rid, int(time.monotonic() * 10))
        except StaleRequest:
            return

    def _finished(self, rid: int) -> bool:
        try:
            return self._ledger.finish(rid) is not Finish.NONE
        except StaleRequest:
            return True


def not_found(id: str) -> UserError:
    """The refusal of an id that names nothing."""
    return UserError(
        f"Response with id '{id[:100]}' not found.",
        status=404,
        code="response_not_found",
        param="response_id",
    )


def _rid(id: str) -> int:
    """The request that an id names. Raises UserError 404."""
    match = _ID.fullmatch(id)
    if match is None:
        raise not_found(id)
    return int(match.group(1), 16)


def _conversation(generate: Generate, memo: Memo) -> Conversation | None:
    """The conversation that a response continued: the prompt's messages, without instructions."""
    prompt = generate.prompt
    if not isinstance(prompt, ChatPrompt):
        return None
    messages = _messages.decode(prompt.messages)
    return Conversation(tuple(messages[bool(memo.response.instructions) :]), len(prompt.messages))
