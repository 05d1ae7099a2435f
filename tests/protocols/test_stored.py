"""The ledger's request record and extras come back as they went in."""

from __future__ import annotations

import pytest

from protocols.errors import PeerError
from protocols.messages import Generate, Submit
from protocols.plan import Logprobs
from protocols.request import Finish, OutputOptions, TokenPrompt
from protocols.sampling import SamplingParams
from protocols.stored import StoredRequest, decode_stored, ending, pack_logprobs, unpack_logprobs
from protocols.wire import encode


def test_a_record_round_trips() -> None:
    sampling = SamplingParams(seed=7, max_tokens=5, stop_token_ids=(2,), logit_bias=((1, -1.5),))
    stored = StoredRequest(
        Generate((5, 6), 1, TokenPrompt(b""), sampling, OutputOptions(stop=("é",), echo=True), trace="t"),
        Submit(6, 0, 1, b"\x01\x00\x00\x00", sampling, arrived_ns=9),
    )
    assert decode_stored(encode(stored)) == stored


def test_a_torn_record_is_a_peer_error() -> None:
    stored = StoredRequest(
        Generate((5,), 1, TokenPrompt(b""), SamplingParams()), Submit(5, 0, 0, b"", SamplingParams())
    )
    with pytest.raises(PeerError):
        decode_stored(encode(stored)[:-1])


def test_extras_are_records_appended_commit_by_commit() -> None:
    first = [Logprobs(-0.5), Logprobs(-1.0, (3, 4), (-1.0, -2.5))]
    second = [Logprobs(float("-inf"), (9,), (-0.25,))]
    assert unpack_logprobs(pack_logprobs(first) + pack_logprobs(second)) == first + second
    assert unpack_logprobs(b"") == []


@pytest.mark.parametrize(
    ("finish", "tokens", "start", "stop_token"),
    [
        (Finish.STOP, (5, 2), 1, 2),
        (Finish.STOP, (2, 5), 2, -1),
        (Finish.STOP, (), 0, -1),
        (Finish.LENGTH, (5, 2), 1, -1),
        (Finish.LENGTH, (), 0, -1),
        (Finish.ERROR, (5,), 1, -1),
        (Finish.ABORT, (5,), 1, -1),
    ],
)
def test_the_ending_is_the_row_that_ended_it(
    finish: Finish, tokens: tuple[int, ...], start: int, stop_token: int
) -> None:
    submit = Submit(5, 0, 0, b"", SamplingParams(stop_token_ids=(2,)))
    logprobs = [Logprobs(-float(token)) for token in tokens]
    extras = pack_logprobs(logprobs)
    row = ending(submit, tokens, finish, 3, extras)
    assert row is not None
    assert (row.rid, row.start, row.finish, row.cached) == (5, start, finish, 3)
    assert (row.tokens, row.logprobs, row.stop_token) == (tokens[start:], tuple(logprobs[start:]), stop_token)
    assert (row.error is not None) == (finish is Finish.ERROR)
    assert ending(submit, tokens, Finish.NONE, 3, extras) is None
