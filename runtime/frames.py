"""Frames on a stream of bytes: a 4-byte big-endian length and so many bytes."""

from __future__ import annotations

import struct

import trio

from protocols.errors import PeerError

_LENGTH = struct.Struct(">I")


async def send(stream: trio.abc.SendStream, data: bytes) -> None:
    """Write one frame."""
    await stream.send_all(_LENGTH.pack(len(data)) + data)


async def receive(stream: trio.abc.ReceiveStream, limit: int) -> bytes | None:
    """Read one frame; None at the end. Raises PeerError where it is longer than `limit` or cut off."""
    head = await _exactly(stream, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > limit:
        raise PeerError(f"a frame of {length} bytes; {limit} at most")
    body = await _exactly(stream, length)
    if len(body) < length:
        raise PeerError("the connection ended within a frame")
    return body


async def _exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """`count` bytes, or nothing at all when the stream ends before the first."""
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            if data:
                raise PeerError("the connection ended within a frame")
            break
        data += more
    return data
