"""An executor's part in loading adapters: they are read in a thread, beside its steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import trio

from protocols.adapters import Adapter
from protocols.errors import StartError, UserError, VerbError
from protocols.orders import AdapterRead, Answer, Done, ReadAdapter, SetAdapters


class Table(Protocol):
    """See `gpu.lora.table.AdapterTable`."""

    def stage(self, adapter: Adapter) -> str:
        """Read it and keep it."""

    def set(self, adapters: Iterable[Adapter]) -> dict[int, str]:
        """These are loaded."""


def begin(table: Table, adapters: Iterable[Adapter], log: Any, *, first: bool) -> None:
    """Load what the standing names. first: of the company's life, so that what cannot be loaded is no
    company's adapter: StartError. Later its requests are refused, and all others are served."""
    for id, why in table.set(adapters).items():
        if first:
            raise StartError(why)
        log.error("adapter_not_loaded", adapter=id, why=why)


async def obey(table: Table, order: ReadAdapter | SetAdapters, log: Any) -> Answer:
    """Carry out an order."""
    match order:
        case ReadAdapter(adapter):
            try:
                return AdapterRead(await trio.to_thread.run_sync(table.stage, adapter))
            except UserError as error:
                raise VerbError("usage", str(error)) from error
        case SetAdapters(adapters):
            begin(table, adapters, log, first=False)
            return Done()
