"""The ledger as one replica's scheduler reads and writes it: which choices are open, and what came of them.

Every result is written here before anybody hears of it, so that the next incarnation finds everything that
may have been sent. That a request is gone (its slot was freed meanwhile) is no error: it is left out, and the
caller is told.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence

import msgspec

from actors.scheduler.commands import Resume
from actors.scheduler.instruments import Instruments
from actors.stored_requests import StoredRequests
from protocols.errors import overloaded
from protocols.messages import SchedulerMail, Submit, TokenRow
from protocols.request import Finish
from protocols.stored import ending, pack_row
from protocols.weights import Made
from runtime.actor import Context
from runtime.ledger import StaleRequest

_NONE = Finish.NONE
_LEDGER_FULL = overloaded("The server has no memory left for this answer.").body


class Records:
    """The ledger's slots of the choices that were sent to this replica. requests: as their tokenizers
    recorded them."""

    def __init__(self, context: Context[SchedulerMail], instruments: Instruments) -> None:
        self._config = context.config
        self._index = context.index
        self._ledger = context.ledger
        self.requests = StoredRequests(context.ledger, context.log)
        self._log = context.log
        self._instruments = instruments

    # --- what stands there

    def found(self) -> tuple[list[Resume], list[tuple[int, TokenRow]]]:
        """The choices that are open, oldest first; and the last row of each that has ended, with the index of
        its tokenizer, which may never have been told."""
        resumes: list[Resume] = []
        endings: list[tuple[int, TokenRow]] = []
        ledger = self._ledger
        for rid in ledger.open_rids():
            with contextlib.suppress(StaleRequest):
                submit = self._stored(rid)
                if submit is None:
                    continue
                tokens, finish = tuple(ledger.committed(rid).tolist()), ledger.finish(rid)
                if finish is _NONE:
                    resumes.append(Resume(submit, tokens, ledger.weights(rid)))
                elif row := ending(submit, tokens, finish, ledger.cached(rid), ledger.extras(rid)):
                    endings.append((submit.origin, row))
        return sorted(resumes, key=lambda resume: resume.submit.arrived_ns), endings

    def is_news(self, message: SchedulerMail) -> bool:
        """Whether to take a message in: not a Submit whose choice has ended already, under an earlier
        incarnation of this actor or of its sender."""
        if not isinstance(message, Submit):
            return True
        try:
            return self._ledger.finish(message.rid) is _NONE
        except StaleRequest:
            return False

    def _stored(self, rid: int) -> Submit | None:
        """The request as this replica was sent it; None where it was sent to another one."""
        number = 0
        if self._config.dp > 1:
            replica, number = self._ledger.assignment(rid) or (-1, 0)
            if replica != self._index:
                return None
        stored = self.requests.read(rid)
        return msgspec.structs.replace(stored.submit, dispatch=number) if stored is not None else None

    # --- what is written there

    def note(self, rid: int, made: Made) -> None:
        """Write down which weights made a choice so far."""
        with contextlib.suppress(StaleRequest):
            self._ledger.note_weights(rid, made)

    def commit(self, rows: Sequence[TokenRow], gone: list[int]) -> Sequence[TokenRow]:
        """Write rows to the ledger; returns those that may be sent. The rows of nearly all choices bring
        tokens and nothing else: these go together, the others one by one."""
        special = {row.rid for row in rows if not _is_plain(row)}
        if special:
            self._instruments.finished(rows)
        plain = [row for row in rows if row.rid not in special] if special else rows
        owners = [row for row in plain for _ in row.tokens]
        tokens = [token for row in plain for token in row.tokens]
        left = self._ledger.commit_each([row.rid for row in owners], tokens)
        if not left and not special:
            return rows
        lacking = Counter(id(owners[index]) for index in left)
        lacking.update({id(row): len(row.tokens) for row in rows if row.rid in special})
        kept = (self._commit_one(row, lacking[id(row)], gone) if id(row) in lacking else row for row in rows)
        return [row for row in kept if row is not None]

    def _commit_one(self, row: TokenRow, lacking: int, gone: list[int]) -> TokenRow | None:
        """What may be sent of a row of which the last `lacking` tokens are to be written; None where its
        request is gone."""
        extras = pack_row(row) if row.logprobs or row.prompt_output else b""
        tokens = row.tokens[len(row.tokens) - lacking :]
        try:
            self._ledger.commit(row.rid, tokens, extras, row.finish, row.cached)
        except StaleRequest:
            gone.append(row.rid)
            return None
        except (OSError, ValueError) as error:
            if row.rid in gone:
                return None
            trace = self.requests.trace(row.rid)
            self._log.error("commit_failed", rid=row.rid, error=str(error), **trace)
            gone.append(row.rid)
            self.settle(row.rid, Finish.ERROR)
            return TokenRow(row.rid, row.start, (), Finish.ERROR, error=_LEDGER_FULL)
        return row

    def settle(self, rid: int, finish: Finish) -> None:
        """Write down that a choice has ended without another token, unless it has ended already."""
        with contextlib.suppress(StaleRequest):
            if self._ledger.finish(rid) is _NONE:
                self._ledger.commit(rid, (), finish=finish)


def _is_plain(row: TokenRow) -> bool:
    """Whether it is tokens and nothing else."""
    return row.finish is _NONE and bool(row.tokens) and not row.logprobs and row.prompt_output is None
