"""Messages to bytes and back: msgpack, array-shaped, a small integer as tag. Never pickle.

msgspec writes and reads it: decoding checks every field against the message's types, so that a
record which is not exactly one of the accepted messages is a PeerError and not a surprise later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from protocols.errors import PeerError

T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all mail."""


_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """The message as one msgpack array: [tag, field, field, ...]."""
    return _encoder.encode(message)


encode_batch: Callable[[Sequence[msgspec.Struct]], bytes] = _encoder.encode
"""The messages as one msgpack array of arrays: what one ring record carries."""


class Decoder(Generic[T]):
    """Decodes the messages of one union (`Decoder(SchedulerMail)`); raises PeerError on anything else."""

    def __init__(self, union: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._decode_batch = msgspec.msgpack.Decoder(list[union]).decode

    def __call__(self, record: bytes) -> T:
        try:
            message: T = self._decode(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError(f"undecodable record: {error}") from error
        return message

    def batch(self, record: bytes) -> list[T]:
        """All messages of `encode_batch`; PeerError when a single one of them is not accepted."""
        try:
            messages: list[T] = self._decode_batch(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError(f"undecodable record: {error}") from error
        return messages
