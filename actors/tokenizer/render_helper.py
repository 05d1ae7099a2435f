"""The process that renders chat templates: `python -m actors.tokenizer.render_helper FD`.

Its whole world is the socket FD: first comes a `Sources`, answered by READY, then prompts, one at a time,
each answered by its text or by the refusal. A template is the model's and sees text of strangers, so whoever
started this process may kill it at any time, and it cannot take more than MEMORY. It dies with its parent.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from actors.tokenizer.template import ChatTemplate
from protocols.errors import ErrorBody, UserError
from protocols.request import ChatPrompt
from runtime import kin

MEMORY = 1 << 30
"""Bytes of data that the process may have."""
LENGTH = struct.Struct("<I")
READY = ""


class Sources(msgspec.Struct, frozen=True):
    """The templates of a model and its named special tokens, as `ChatTemplate` takes them."""

    templates: dict[str, str]
    special_tokens: dict[str, str]


Answer = str | ErrorBody

decode_answer: Callable[[bytes], Answer] = msgspec.msgpack.Decoder(Answer).decode
_decode_prompt = msgspec.msgpack.Decoder(ChatPrompt).decode


def frame(value: msgspec.Struct | str) -> bytes:
    """A value as it travels, either way."""
    data = msgspec.msgpack.encode(value)
    return LENGTH.pack(len(data)) + data


def answer(template: ChatTemplate, prompt: ChatPrompt) -> Answer:
    """The prompt's text, or why there is none."""
    try:
        return template.render(prompt)
    except UserError as error:
        return error.body


def _read(stream: BinaryIO) -> bytes:
    """The next frame; b"" at the end, which may come in the middle of one."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return b""
    (length,) = LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else b""


def serve(peer: socket.socket) -> None:
    """Answer until the other end is closed. Raises ConnectionError when whoever had it died of a SIGKILL with
    an answer unread."""
    stream = peer.makefile("rb")
    if not (data := _read(stream)):
        return
    sources = msgspec.msgpack.decode(data, type=Sources)
    template = ChatTemplate(sources.templates, sources.special_tokens)
    peer.sendall(frame(READY))
    while data := _read(stream):
        try:
            reply = frame(answer(template, _decode_prompt(data)))
        except UnicodeEncodeError:
            reply = frame(ErrorBody(400, "the chat template's text is not Unicode.", param="messages"))
        peer.sendall(reply)


def main(fd: int) -> None:
    """Serve as long as anybody asks."""
    kin.follow(os.getppid())
    kin.be_called("render_helper")
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with contextlib.suppress(ConnectionError):
        serve(socket.socket(fileno=fd))


if __name__ == "__main__":
    main(int(sys.argv[1]))
