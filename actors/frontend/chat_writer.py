"""The answer of a chat, taken apart: as deltas of a stream, or as one message."""

from __future__ import annotations

import secrets

import msgspec

from actors.answers.pieces import CallArguments, CallBegun, CallEnded, Piece, Text, Thought
from actors.frontend.answer_format import AnswerFormat
from protocols.openai.chat import AnsweredCall, AnsweredFunction, AnswerMessage

_encode = msgspec.json.Encoder().encode


class ChatWriter:
    """One choice. called: whether there has been a call."""

    def __init__(self, answer_format: AnswerFormat) -> None:
        self._answer_format = answer_format
        self._parser = answer_format.parser()
        self._key = secrets.token_hex(12)
        self.called = False

    def begin(self, *, thinking: bool) -> None:
        """See AnswerParser."""
        self._parser.begin(thinking=thinking)

    def feed(self, text: str, *, last: bool) -> list[bytes]:
        """The deltas, as JSON, that `text` settles; all that is left with the last one."""
        return [delta for piece in self._pieces(text, last) if (delta := self._delta(piece))]

    def message(self, text: str) -> AnswerMessage:
        """The message that is the whole `text`."""
        thought, content = "", ""
        calls: list[AnsweredCall] = []
        for piece in self._pieces(text, last=True):
            match piece:
                case Thought(more):
                    thought += more
                case Text(more):
                    content += more
                case CallBegun(index, name):
                    calls.append(AnsweredCall(self._id(index), AnsweredFunction(name, "")))
                case CallArguments(_, more):
                    calls[-1].function.arguments += more
                case CallEnded():
                    pass
        return AnswerMessage(
            content=None if calls and not content else content,
            reasoning_content=thought or msgspec.UNSET,
            reasoning=thought or msgspec.UNSET,
            tool_calls=calls or msgspec.UNSET,
        )

    def _pieces(self, text: str, last: bool) -> list[Piece]:
        pieces = self._parser.feed(text)
        if last:
            pieces += self._parser.flush()
        self.called = self.called or any(isinstance(piece, CallBegun) for piece in pieces)
        return pieces

    def _id(self, index: int) -> str:
        return self._answer_format.call_id(self._key, index)

    def _delta(self, piece: Piece) -> bytes:
        match piece:
            case Thought(text):
                shown = _encode(text)
                return b'{"reasoning_content":%b,"reasoning":%b}' % (shown, shown)
            case Text(text):
                return b'{"content":%b}' % _encode(text)
            case CallBegun(index, name):
                call = {"index": index, "id": self._id(index), "type": "function"}
                return _encode({"tool_calls": [{**call, "function": {"name": name, "arguments": ""}}]})
            case CallArguments(index, text):
                return b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (index, _encode(text))
            case CallEnded():
                return b""
