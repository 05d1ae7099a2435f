"""What every handler of a frontend shares."""

from __future__ import annotations

import dataclasses
import secrets
import time
from typing import Any, TypeVar

import msgspec
import trio

from actors.frontend.accounts import Account
from actors.frontend.adapters import Adapters
from actors.frontend.engine import Engine
from actors.frontend.jobs import Job
from protocols.config import Config, ModelCard
from protocols.openai.body import read_body
from runtime.exchange import Exchange

T = TypeVar("T")

LARGE = 64 * 1024
"""Bytes of a body beyond which a thread reads it, so that its client alone waits for that."""


@dataclasses.dataclass(frozen=True)
class Service:
    """The engine and the options. started: seconds since the epoch. account: of the key whose requests are
    handled; None where nobody needs one."""

    config: Config
    engine: Engine
    log: Any
    started: int
    account: Account | None = None

    def charged_to(self, account: Account) -> Service:
        """The same service for the requests of one key."""
        return dataclasses.replace(self, engine=self.engine.charged_to(account), account=account)

    def trace_of(self, exchange: Exchange, unique: str = "", named: str | None = None) -> str:
        """The traceparent that travels with the request: a span below the client's, or of a trace of its own
        that is named as the request is; the answer tells it. unique: 32 hexadecimal digits, where one
        exchange brings many requests, which have no such answer. named: by the request itself."""
        header = named or exchange.head.value("traceparent")
        own = self.engine.instruments.arrived(header, unique or exchange.id[-32:]).header()
        if not unique:
            told = exchange.extra
            exchange.extra = lambda: (*told(), ("traceparent", own))
        return own

    @property
    def owner(self) -> str:
        """The key's name: responses made under it are found under it alone."""
        return self.account.key.name if self.account is not None else ""

    @property
    def model(self) -> ModelCard:
        """The model that is served."""
        return self.config.model

    @property
    def adapters(self) -> Adapters:
        """The adapters of the model that may be named."""
        return self.engine.adapters

    def title(self, job: Job) -> str:
        """What an answer calls its model."""
        return job.adapter.name if job.adapter is not None else self.model.name


async def read(decoder: msgspec.json.Decoder[T], body: bytes | str) -> T:
    """`read_body`, without holding up the other clients."""
    if len(body) <= LARGE:
        return read_body(decoder, body)
    return await trio.to_thread.run_sync(read_body, decoder, body)


def new_id(prefix: str) -> str:
    """An id that nobody can guess: `prefix_` and 128 random bits."""
    return f"{prefix}{secrets.token_hex(16)}"


def now() -> int:
    """Seconds since the epoch."""
    return int(time.time())
