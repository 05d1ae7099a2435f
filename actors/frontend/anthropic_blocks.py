"""The content of a message of Anthropic's API, block by block: pieces of an answer in, blocks or events out;
sans-I/O."""

from __future__ import annotations

import secrets

import msgspec

from actors.answers.pieces import CallArguments, CallBegun, CallEnded, Piece, Text, Thought
from actors.frontend.answer_format import AnswerFormat
from protocols.openai.messages import AnswerBlock, TextBlock, ThinkingBlock, ToolUseBlock

_encode = msgspec.json.Encoder().encode


class Blocks:
    """The blocks of one answer. shown: thoughts are; otherwise they are left out. done: those that are
    complete; called: whether there has been a call."""

    def __init__(self, answer_format: AnswerFormat, *, shown: bool) -> None:
        self.done: list[AnswerBlock] = []
        self.called = False
        self._answer_format, self._shown = answer_format, shown
        self._parser = answer_format.parser()
        self._key = secrets.token_hex(12)
        self._open: AnswerBlock | None = None
        self._parts: list[str] = []

    def begin(self, *, thinking: bool) -> None:
        """See AnswerParser."""
        self._parser.begin(thinking=thinking)

    def feed(self, text: str, *, last: bool) -> list[bytes]:
        """The events that `text` brings; all that is left with the last one."""
        pieces = self._parser.feed(text)
        out: list[bytes] = []
        for piece in [*pieces, *self._parser.flush()] if last else pieces:
            self._take(piece, out)
        if last:
            if self._open is None and not self.done:
                self._begin(TextBlock(""), out)
            self._close(out)
        return out

    def _take(self, piece: Piece, out: list[bytes]) -> None:
        match piece:
            case Thought(text):
                if self._shown:
                    self._write(ThinkingBlock(""), {"type": "thinking_delta", "thinking": text}, text, out)
            case Text(text):
                self._write(TextBlock(""), {"type": "text_delta", "text": text}, text, out)
            case CallBegun(index, name):
                self.called = True
                self._begin(ToolUseBlock(self._answer_format.call_id(self._key, index), name, {}), out)
            case CallArguments(_, text):
                self._delta({"type": "input_json_delta", "partial_json": text}, text, out)
            case CallEnded():
                self._close(out)

    def _write(self, block: AnswerBlock, delta: dict[str, str], text: str, out: list[bytes]) -> None:
        """More of a block of that type, which is begun where it is not the open one."""
        if type(self._open) is not type(block):
            self._begin(block, out)
        self._delta(delta, text, out)

    def _begin(self, block: AnswerBlock, out: list[bytes]) -> None:
        self._close(out)
        self._open = block
        out.append(event("content_block_start", index=len(self.done), content_block=block))

    def _delta(self, delta: dict[str, str], text: str, out: list[bytes]) -> None:
        self._parts.append(text)
        out.append(event("content_block_delta", index=len(self.done), delta=delta))

    def _close(self, out: list[bytes]) -> None:
        block, text = self._open, "".join(self._parts)
        if block is None:
            return
        match block:
            case ThinkingBlock():
                block.thinking = text
            case TextBlock():
                block.text = text
            case ToolUseBlock():
                block.input = _value(text)
        out.append(event("content_block_stop", index=len(self.done)))
        self.done.append(block)
        self._open = None
        self._parts.clear()


def _value(arguments: str) -> object:
    """Arguments as a value; those that were cut off, or are no JSON, as their text."""
    try:
        return msgspec.json.decode(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return {"_text": arguments}


def event(kind: str, **fields: object) -> bytes:
    """A server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))
