"""A started job: its choices, how much of each was seen, and where their text goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import msgspec
import trio

from actors.frontend.accounts import Account
from protocols.errors import ErrorBody, UserError
from protocols.messages import Generate, TextRow
from protocols.spans import is_sampled


class Sink(Protocol):
    """Where the text of a generation goes. Calls are synchronous and must not wait."""

    def feed(self, index: int, row: TextRow) -> None:
        """New text of choice `index`; rows come in order and never overlap."""

    def fail(self, error: ErrorBody) -> None:
        """The generation ended with an error; nothing follows."""

    def pump(self) -> None:
        """Rows have come: send them on, as far as the client takes them."""


class Choice:
    """One choice on its way: how much of it was seen, by which the next row is cut (characters, tokens, and
    tokens of a listed prompt). catching_up: its rows are being sent again, and those that come before the
    replay are not wanted. arrived, last, resumed, traced: see `instruments.Timed`."""

    __slots__ = (
        "arrived",
        "billed",
        "catching_up",
        "characters",
        "generation",
        "index",
        "last",
        "prompt",
        "read",
        "resumed",
        "rid",
        "tokens",
        "traced",
    )

    def __init__(self, rid: int, index: int, generation: Generation) -> None:
        self.catching_up = generation.adopted
        self.rid = rid
        self.index = index
        self.generation = generation
        self.billed = self.prompt = 0
        self.characters = 0
        self.tokens = 0
        self.read = 0
        self.arrived, self.last = generation.mails[0].arrived_ns, 0
        self.resumed = generation.adopted
        self.traced = is_sampled(generation.mails[0].trace)

    def cut(self, row: TextRow) -> TextRow:
        """The part of `row` that is new. A stop token that the client did not name is the model's own end,
        and not shown. Raises UserError when text before it never came."""
        if row.offset == self.characters and row.stop is None and not (row.logprobs or row.token_ids):
            self.characters += len(row.text)
            return row
        if type(row.stop) is int and row.stop not in self.generation.mails[0].sampling.stop_token_ids:
            row = msgspec.structs.replace(row, stop=None)
        seen, known = self.characters - row.offset, self._listed(row) - row.first_token
        if seen < 0:
            raise UserError(
                "Part of the answer was lost.", status=500, type="server_error", code="internal_error"
            )
        listed = bool(row.logprobs or row.token_ids)
        if row.pieces:
            pieces = row.pieces[max(known, 0) :] if listed else _beyond(row.pieces, seen)
            row = msgspec.structs.replace(row, pieces=pieces)
        if seen:
            row = msgspec.structs.replace(row, offset=self.characters, text=row.text[seen:])
        if known > 0 and listed:
            row = msgspec.structs.replace(
                row,
                first_token=row.first_token + known,
                logprobs=row.logprobs[known:],
                token_ids=row.token_ids[known:],
            )
        self.characters += len(row.text)
        listed_to = row.first_token + max(len(row.logprobs), len(row.token_ids))
        if row.tokens:
            self.tokens = max(self.tokens, listed_to)
        else:
            self.read = max(self.read, listed_to)
        return row

    def _listed(self, row: TextRow) -> int:
        """How many of the tokens that such a row lists have been seen."""
        return self.tokens if row.tokens else self.read

    def bill(self, row: TextRow) -> int:
        """Tokens up to `row` that were not charged yet; the first choice of each prompt pays for it."""
        if row.usage is not None and self.index % self.generation.n == 0:
            self.prompt = row.usage.prompt_tokens
        new = max(0, self.prompt + row.tokens - self.billed)
        self.billed += new
        return new

    def follows(self, row: TextRow) -> bool:
        """Whether `row` follows without a gap."""
        listed = bool(row.logprobs or row.token_ids)
        return row.offset <= self.characters and not (listed and row.first_token > self._listed(row))


def _beyond(pieces: tuple[int, ...], seen: int) -> tuple[int, ...]:
    """What is left of `pieces` behind their first `seen` characters."""
    for i, length in enumerate(pieces):
        if seen < length:
            return (length - seen, *pieces[i + 1 :])
        seen -= length
    return ()


class Generation:
    """A started job. begun: the first row or the refusal has come; done: nothing more will. adopted: another
    process started it. account: of the key that pays. waits: no token has come yet. names: see Job."""

    def __init__(
        self,
        mails: tuple[Generate, ...],
        sink: Sink,
        *,
        account: Account | None = None,
        adopted: bool = False,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._names = names
        self.mails = mails
        self.adopted = adopted
        self.account = account
        self.waits = not adopted
        self._leave: Callable[[], None] | None = None
        self.sink = sink
        self.begun = trio.Event()
        self.done = trio.Event()
        self.error: ErrorBody | None = None
        rids = [rid for mail in mails for rid in mail.rids]
        self.choices = tuple(Choice(rid, index, self) for index, rid in enumerate(rids))
        self.open = len(rids)

    @property
    def n(self) -> int:
        """Choices of each prompt."""
        return len(self.mails[0].rids)

    def enter(self) -> None:
        """Count as a request of the key. Raises UserError where that may have no more."""
        if self.account is not None:
            self._leave = self.account.admit(len(self.choices))

    def fail(self, error: ErrorBody) -> None:
        """End with an error, which names fields as the endpoint does."""
        param = self._names.get(error.param or "", error.param)
        self.error = msgspec.structs.replace(error, param=param)
        self.sink.fail(self.error)

    def end(self) -> None:
        """Nothing more will come; idempotent."""
        if self._leave is not None:
            self._leave()
            self._leave = None
        self.begun.set()
        self.done.set()
