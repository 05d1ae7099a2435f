"""The ledger's records of requests, as every actor below the frontend reads them."""

from __future__ import annotations

from typing import Any

from protocols.errors import PeerError
from protocols.stored import StoredRequest, decode_stored
from runtime.ledger import Ledger, StaleRequest
from runtime.tracing import trace_fields


class StoredRequests:
    """Reads records; one that cannot be decoded is logged and counts as missing."""

    def __init__(self, ledger: Ledger, log: Any) -> None:
        self._ledger, self._log = ledger, log

    def read(self, rid: int) -> StoredRequest | None:
        """The record of a choice, None where there is none yet. Raises StaleRequest."""
        record = self._ledger.request(rid)
        try:
            return decode_stored(record) if record else None
        except PeerError as error:
            self._log.error("ledger_record_bad", rid=rid, error=str(error))
            return None

    def trace(self, rid: int) -> dict[str, str]:
        """The trace fields of a log line about a choice; none where its record is gone."""
        try:
            stored = self.read(rid)
        except StaleRequest:
            return {}
        return trace_fields(stored.submit.trace) if stored is not None else {}
