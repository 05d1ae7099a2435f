"""What the ledger's areas hold: the request record and the per-token extras, as bytes.

The tokenizer writes the record before the Submit leaves; whoever restarts reads it back: the
scheduler its `submit`, the tokenizer also the `generate` that says what the client wants to see.
Extras are what was read of the prompt, with the first commit, then the logprobs of the committed tokens,
commit by commit: logprobs are for each token a u16 length (little-endian), then one msgpack array; a pooled
hidden state is its bytes, with nothing behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from protocols.errors import ErrorBody
from protocols.messages import Generate, Submit, TokenRow
from protocols.plan import Logprobs, PromptOutput
from protocols.request import Finish
from protocols.sampling import Pool
from protocols.wire import Decoder


class StoredRequest(msgspec.Struct, frozen=True, array_like=True):
    """The normalised request of one choice.

    submit: what the scheduler was sent. generate: the request as the frontend made it, without what `submit`
    has in a later form: its sampling and rules are left at the defaults, and its prompt is an empty
    TokenPrompt unless its text is to be echoed, or is short and a client may come back to continue it.
    """

    generate: Generate
    submit: Submit


decode_stored: Decoder[StoredRequest] = Decoder(StoredRequest)
"""Record bytes to StoredRequest; raises PeerError on anything else."""

_decode_logprobs: Decoder[Logprobs] = Decoder(Logprobs)


def pack_logprobs(records: Iterable[Logprobs]) -> bytes:
    """Extras of newly committed tokens: one record a token, in order."""
    encoded = [msgspec.msgpack.encode(record) for record in records]
    return b"".join(len(record).to_bytes(2, "little") + record for record in encoded)


def pack_row(row: TokenRow) -> bytes:
    """Extras of a row that is to be committed."""
    read = row.prompt_output
    before = pack_logprobs(read.logprobs) + read.pooled if read is not None else b""
    return before + pack_logprobs(row.logprobs) if row.logprobs else before


def unpack_extras(submit: Submit, extras: bytes) -> tuple[PromptOutput | None, list[Logprobs]]:
    """An extras area: what was read of the prompt, where the request asks for it and it was committed; and
    the records of the output, of which entry i speaks of token i."""
    sampling = submit.sampling
    if not extras or sampling.pool is not Pool.NONE:
        return (PromptOutput(pooled=extras) if extras else None), []
    records = unpack_logprobs(extras)
    if sampling.prompt_logprobs is None:
        return None, records
    count = len(submit.tokens) // 4 - 1
    return PromptOutput(tuple(records[:count])), records[count:]


def unpack_logprobs(extras: bytes) -> list[Logprobs]:
    """All records of logprobs, in order."""
    records, at = [], 0
    while at < len(extras):
        start = at + 2
        at = start + int.from_bytes(extras[at:start], "little")
        records.append(_decode_logprobs(extras[start:at]))
    return records


_FAILED = ErrorBody(500, "The engine failed on this request.", "server_error", "internal_error")


def ending(
    submit: Submit, tokens: Sequence[int], finish: Finish, cached: int, extras: bytes
) -> TokenRow | None:
    """The row that finished a choice, rebuilt from the ledger, with the token that came with it; None while
    the choice goes on. A STOP without a stop token was a stop string's: it was reported when later tokens may
    have been committed.

    tokens, extras: everything committed; cached: see TokenRow.
    """
    stop_token = -1
    start = len(tokens)
    match finish:
        case Finish.NONE:
            return None
        case Finish.STOP if tokens and tokens[-1] in submit.sampling.stop_token_ids:
            start -= 1
            stop_token = tokens[-1]
        case Finish.LENGTH if tokens:
            start -= 1
    error = _FAILED if finish is Finish.ERROR else None
    prompt_output, logprobs = unpack_extras(submit, extras)
    last, listed = tuple(tokens[start:]), tuple(logprobs[start : len(tokens)])
    first = None if start else prompt_output
    return TokenRow(submit.rid, start, last, finish, cached, listed, stop_token, error, first)
