"""The ledger's records of requests, as a tokenizer writes them: each choice as the scheduler is sent it, and
as its client asked for it.

A record is written before its Submit leaves, so whoever comes back finds every request that may be below.
"""

from __future__ import annotations

from typing import Any

import msgspec

from actors.tokenizer.prompt import Prompted
from protocols.config import Config
from protocols.errors import UserError, overloaded
from protocols.grammar import Rules
from protocols.messages import Generate, Submit
from protocols.request import ChatPrompt, TextPrompt, TokenPrompt
from protocols.sampling import SamplingParams
from protocols.stored import StoredRequest
from protocols.wire import encode
from runtime.ledger import Ledger, StaleRequest
from runtime.tracing import trace_fields

KEPT_MESSAGES = 1 << 16
"""Bytes of a conversation kept in the ledger, so that it can be continued after its frontend's death."""

_RING_OVERHEAD = 4096
"""A Submit, smaller than its record in the ledger, must fit the ring whose half is its longest record."""


def record(message: Generate, prompted: Prompted, rid: int, index: int) -> StoredRequest:
    """One choice of a request that tokenizer `index` takes up."""
    output, prompt = message.output, message.prompt
    kept = output.echo and isinstance(prompt, TextPrompt)
    if isinstance(prompt, ChatPrompt):
        output = msgspec.structs.replace(output, echo=False, thinking=prompted.thinking)
        kept = bool(message.client) and len(prompt.messages) <= KEPT_MESSAGES
    return StoredRequest(
        msgspec.structs.replace(
            message,
            prompt=prompt if kept else TokenPrompt(b""),
            sampling=SamplingParams(),
            output=output,
            rules=Rules(),
        ),
        Submit(
            rid,
            index,
            message.rids.index(rid),
            prompted.tokens,
            prompted.sampling,
            message.priority,
            message.salt,
            message.trace,
            message.arrived_ns,
            adapter=message.adapter,
            whole=output.whole and not output.stop,
        ),
    )


class Records:
    """Writes the records of this tokenizer's choices into the ledger that all share."""

    def __init__(self, config: Config, ledger: Ledger, log: Any) -> None:
        self._ledger = ledger
        self._log = log
        self._largest = min(config.ring_bytes // 2 - _RING_OVERHEAD, ledger.layout.request_bytes)

    def put(self, stored: StoredRequest) -> bool:
        """Write a record; False when the frontend has given the slot up. Raises UserError."""
        encoded = encode(stored)
        if len(encoded) > self._largest:
            raise UserError("The request is too large.", status=413, code="request_too_large")
        try:
            self._ledger.put_request(stored.submit.rid, encoded)
        except StaleRequest:
            return False
        except OSError as error:
            submit = stored.submit
            self._log.error("ledger_full", rid=submit.rid, error=str(error), **trace_fields(submit.trace))
            raise overloaded("The server has no memory for another request.") from error
        return True
