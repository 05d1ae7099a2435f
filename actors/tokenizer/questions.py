"""Questions that need only the tokenizer: the ids of a prompt, the text of ids. They leave no state
behind."""

from __future__ import annotations

import array
from typing import Any, assert_never

from actors.tokenizer.codec import Codec, CodecError
from actors.tokenizer.prompt import Prompter
from protocols.errors import ErrorBody, UserError
from protocols.messages import Decode, Decoded, Encode, Encoded
from protocols.wire import encode_batch

Question = Encode | Decode
Answer = Encoded | Decoded

_FAILED = ErrorBody(500, "The tokenizer failed on this text.", "server_error", "internal_error")
_TOO_LARGE = ErrorBody(413, "The answer would be too large.", code="request_too_large")


class Answerer:
    """Answers questions; safe to use from several threads. limit: bytes of an answer at most."""

    def __init__(self, codec: Codec, prompter: Prompter, limit: int, log: Any) -> None:
        self._codec = codec
        self._prompter = prompter
        self._limit = limit
        self._log = log

    def __call__(self, question: Question, rendered: str) -> Answer:
        """The answer, or the refusal, which has the answer's type too. rendered: the text of a chat."""
        answer = self._answer(question, rendered)
        if len(encode_batch([answer])) <= self._limit:
            return answer
        return refusal(question, _TOO_LARGE)

    def _answer(self, question: Question, rendered: str) -> Answer:
        try:
            match question:
                case Encode():
                    ids = self._prompter.ids(question.prompt, rendered, add_special=question.add_special)
                    names = self._codec.entries(ids.tolist()) if question.names else ()
                    return Encoded(question.number, ids.tobytes(), names)
                case Decode():
                    tokens = array.array("i", question.tokens)
                    text = self._codec.decode(tokens, skip_special=question.skip_special)
                    return Decoded(question.number, text)
                case other:
                    assert_never(other)
        except UserError as error:
            return refusal(question, error.body)
        except CodecError:
            self._log.exception("tokenizer_failed")
            return refusal(question, _FAILED)


def refusal(question: Question, error: ErrorBody) -> Answer:
    """The answer that says why there is none."""
    kind = Encoded if isinstance(question, Encode) else Decoded
    return kind(question.number, error=error)
