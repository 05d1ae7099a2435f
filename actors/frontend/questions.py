"""Questions that a frontend asks a tokenizer (ids of a text, text of ids), for which there is no ledger slot.

A question that a dying tokenizer had read is asked again of its successor, so it may be answered twice; the
second answer is ignored.
"""

from __future__ import annotations

import dataclasses
import secrets
from typing import TypeVar

import msgspec
import trio

from protocols.errors import UserError
from protocols.messages import Decode, Decoded, Encode, Encoded
from runtime.channel import Outbox

Answer = TypeVar("Answer", Encoded, Decoded)


@dataclasses.dataclass
class _Asked:
    """A question that has no answer yet."""

    tokenizer: int
    question: Encode | Decode
    answered: trio.Event
    answer: Encoded | Decoded | None = None


class Questions:
    """The open questions of frontend `index`."""

    def __init__(self, index: int, tokenizers: int, outbox: Outbox) -> None:
        self.index = index
        self._tokenizers = tokenizers
        self._outbox = outbox
        self._open: dict[int, _Asked] = {}

    async def encode(self, question: Encode) -> Encoded:
        """Ids of a prompt. Raises UserError."""
        return await self._ask(question, Encoded)

    async def decode(self, question: Decode) -> Decoded:
        """Text of ids. Raises UserError."""
        return await self._ask(question, Decoded)

    def take(self, answer: Encoded | Decoded) -> None:
        """Take in an answer."""
        asked = self._open.get(answer.number)
        if asked is not None:
            asked.answer = answer
            asked.answered.set()

    async def again(self, tokenizer: int) -> None:
        """Ask again what a dead incarnation of a tokenizer may have read and not answered."""
        for asked in list(self._open.values()):
            if asked.tokenizer == tokenizer and asked.answer is None:
                await self._send(asked)

    async def _ask(self, question: Encode | Decode, kind: type[Answer]) -> Answer:
        number = secrets.randbits(63)
        question = msgspec.structs.replace(question, number=number, origin=self.index)
        asked = self._open[number] = _Asked(number % self._tokenizers, question, trio.Event())
        try:
            await self._send(asked)
            await asked.answered.wait()
        finally:
            del self._open[number]
        assert isinstance(asked.answer, kind)
        if asked.answer.error is not None:
            raise UserError.from_body(asked.answer.error)
        return asked.answer

    async def _send(self, asked: _Asked) -> None:
        try:
            await self._outbox.send(f"tokenizer.{asked.tokenizer}", asked.question)
        except ValueError:
            raise UserError("The request is too large.", status=413, code="request_too_large") from None
