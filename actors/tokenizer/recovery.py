"""What the ledger gives back: tokens that never came by mail, and whole streams after a restart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec

from actors.tokenizer.stream import ChoiceStream
from protocols.messages import Submit, TextRow, TokenRow
from protocols.plan import Logprobs
from protocols.stored import StoredRequest, ending, unpack_extras
from runtime.ledger import Ledger

SLICE = 256
"""Tokens replayed into one row at most, so that no row outgrows a ring."""


def committed_row(ledger: Ledger, submit: Submit, row: TokenRow, received: int) -> TokenRow:
    """`row` with the committed tokens received .. row.start put in front. Raises LookupError when they
    are not all there, StaleRequest when the request is gone."""
    missing = row.start - received
    before = ledger.committed(row.rid, received)[:missing].tolist()
    if len(before) < missing:
        raise LookupError(f"{missing} tokens are missing, {len(before)} are committed")
    prompt_output, listed = unpack_extras(submit, ledger.extras(row.rid))
    logprobs = listed[received : row.start]
    return msgspec.structs.replace(
        row,
        start=received,
        tokens=(*before, *row.tokens),
        logprobs=(*logprobs, *row.logprobs),
        cached=ledger.cached(row.rid),
        prompt_output=None if received else prompt_output,
    )


def replay(
    stream: ChoiceStream, stored: StoredRequest, ledger: Ledger, *, whole: bool = False
) -> Iterator[TextRow]:
    """Feed a fresh stream everything committed; the rows that its client may not have seen, or all.

    The delivered tokens are taken in silently: their rows were sent. But whatever closed the
    choice is told again, because only the client's side knows whether it heard.
    """
    rid = stream.rid
    committed, finish = ledger.outcome(rid)
    tokens = committed.tolist()
    delivered = 0 if whole else min(ledger.delivered(rid), len(tokens))
    extras = ledger.extras(rid)
    prompt_output, logprobs = unpack_extras(stored.submit, extras)
    cached = ledger.cached(rid)
    last = ending(stored.submit, tokens, finish, cached, extras)
    cut = last.start if last else len(tokens)
    opening = stream.opening()
    yield from opening if not delivered else ()
    rows = list(_rows(rid, tokens[:cut], logprobs[: len(tokens)], delivered, cached))
    if rows:
        rows[0] = msgspec.structs.replace(rows[0], prompt_output=prompt_output)
    for row in rows:
        preface = stream.preface(row)
        yield from preface if not delivered else ()
        text_row = stream.take(row)
        if text_row is not None and (row.start >= delivered or stream.closed):
            yield text_row
    if last:
        yield from stream.preface(last)
        if (text_row := stream.take(last)) is not None:
            yield text_row


def _rows(
    rid: int, tokens: list[int], logprobs: list[Logprobs], delivered: int, cached: int
) -> Iterator[TokenRow]:
    """The tokens in slices, one of which ends where the delivered ones do."""
    edges = sorted({*range(0, len(tokens), SLICE), min(delivered, len(tokens)), len(tokens)})
    for start, end in itertools.pairwise(edges):
        row = TokenRow(rid, start, tuple(tokens[start:end]), cached=cached)
        yield msgspec.structs.replace(row, logprobs=tuple(logprobs[start:end])) if logprobs else row
