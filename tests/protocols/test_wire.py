"""The wire is ordinary msgpack, whoever reads it."""

from __future__ import annotations

import msgpack
import pytest

from protocols.errors import PeerError
from protocols.messages import Abort, StopHere, TokenizerMail, TokenRow, Tokens
from protocols.plan import Plan
from protocols.request import Finish
from protocols.wire import Decoder, encode, encode_batch


def test_a_message_is_an_array_that_begins_with_its_tag() -> None:
    row = TokenRow(1 << 40, 3, (7, 8), Finish.STOP, stop_token=8)
    expected = [5, [[1 << 40, 3, [7, 8], 1, 0, [], 8, None, None]]]
    assert msgpack.unpackb(encode(Tokens((row,)))) == expected
    assert msgpack.unpackb(encode(Plan(1, 2, decodes=b"\1\0\0\0"))) == [
        16,
        1,
        2,
        [],
        [],
        [],
        [],
        b"\1\0\0\0",
        b"",
        1,
        False,
    ]


def test_a_batch_written_by_another_library_is_read() -> None:
    decoder: Decoder[TokenizerMail] = Decoder(TokenizerMail)
    assert decoder.batch(msgpack.packb([[3, 9], [3, 10]])) == [Abort(9), Abort(10)]
    assert msgpack.unpackb(encode_batch([Abort(9), StopHere(9, 4)])) == [[3, 9], [4, 9, 4]]


@pytest.mark.parametrize(
    "record",
    [b"", b"\xc1", msgpack.packb([[3, "9"]]), msgpack.packb([[4, 9, 1]]), msgpack.packb([[3, 9, 9.5]])[:-1]],
)
def test_what_is_not_accepted_is_the_peers_error(record: bytes) -> None:
    decoder: Decoder[TokenizerMail] = Decoder(TokenizerMail)
    with pytest.raises(PeerError, match="undecodable record"):
        decoder.batch(record)
