"""What a helper process of the tokenizer does: `python -m MODULE FD`, whose world is the socket FD.

First comes what it works with, answered by READY, then questions, one at a time, each answered by a text or
by a refusal. What it reads is written by strangers, so whoever started it may kill it at any time, and it
cannot take more than MEMORY. It dies with its parent.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from protocols.errors import ErrorBody
from runtime import kin

MEMORY = 1 << 30
"""Bytes of data that the process may have."""
LENGTH = struct.Struct("<I")
READY = ""

Answer = str | ErrorBody
Answerer = Callable[[bytes], Answer]
"""Answers one question after another."""

decode_answer: Callable[[bytes], Answer] = msgspec.msgpack.Decoder(Answer).decode


def frame(value: msgspec.Struct | str) -> bytes:
    """A value as it travels, either way."""
    data = msgspec.msgpack.encode(value)
    return LENGTH.pack(len(data)) + data


def main(fd: int, name: str, begin: Callable[[bytes], Answerer]) -> None:
    """Serve as long as anybody asks. name: in `ps`; begin: from what it works with."""
    kin.follow(os.getppid())
    kin.be_called(name)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with contextlib.suppress(ConnectionError):
        _serve(socket.socket(fileno=fd), begin)


def _serve(peer: socket.socket, begin: Callable[[bytes], Answerer]) -> None:
    """Answer until the other end is closed. Raises ConnectionError when whoever had it died of a SIGKILL with
    an answer unread."""
    stream = peer.makefile("rb")
    if not (data := _read(stream)):
        return
    answer = begin(data)
    peer.sendall(frame(READY))
    while data := _read(stream):
        peer.sendall(frame(answer(data)))


def _read(stream: BinaryIO) -> bytes:
    """The next frame; b"" at the end, which may come in the middle of one."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return b""
    (length,) = LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else b""
