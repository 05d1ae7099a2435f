"""The text events of a response as they are kept: token by token, and compact until somebody reads them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import msgspec

from protocols.messages import TextLogprob, TextRow
from protocols.openai.logprobs import TokenLogprob, token_logprob

DELTA = "response.output_text.delta"
_DELTA_BYTES = 160
_LOGPROB_BYTES = 500
_encode = msgspec.json.Encoder().encode


class Event(msgspec.Struct, frozen=True, gc=False):
    """One server event, ready to send: `json` is one object."""

    kind: str
    json: bytes


class Said(msgspec.Struct, frozen=True, gc=False):
    """The text of one token, or of several whose text one of them settles. Kept until the response ends:
    the garbage collector is not to walk over it."""

    text: str
    logprobs: Sequence[TokenLogprob] = ()


class Delta(Said, frozen=True, gc=False):
    """An event of kind DELTA, but for its number. head: see `delta_head`; all deltas of an item share it."""

    head: bytes = b""

    def numbered(self, number: int) -> Event:
        """The event."""
        shown = _encode(self.logprobs) if self.logprobs else b"[]"
        text = _encode(self.text)
        return Event(DELTA, b'%b%b,"logprobs":%b,"sequence_number":%d}' % (self.head, text, shown, number))


def delta_head(item_id: str, output_index: int) -> bytes:
    """The JSON of a delta up to its text."""
    place = {"type": DELTA, "item_id": item_id, "output_index": output_index, "content_index": 0}
    return _encode(place)[:-1] + b',"delta":'


def size(entry: Event | Delta) -> int:
    """About how many bytes it takes."""
    if isinstance(entry, Event):
        return len(entry.json)
    entries = sum(1 + len(logprob.top_logprobs) for logprob in entry.logprobs)
    return _DELTA_BYTES + len(entry.text) + _LOGPROB_BYTES * entries


def said_in(row: TextRow) -> Iterator[Said]:
    """A row token by token: of those with text, or of all where they have logprobs."""
    return _one_by_one(row) if row.logprobs else map(Said, texts_of(row))


def texts_of(row: TextRow) -> Sequence[str]:
    """The text that each token of a row settled, of those that settled any."""
    if not row.pieces:
        return (row.text,) if row.text else ()
    ends = tuple(itertools.accumulate(row.pieces))
    return [row.text[end - length : end] for length, end in zip(row.pieces, ends, strict=True) if length]


def _one_by_one(row: TextRow) -> Iterator[Said]:
    start = 0
    for length, entry in itertools.zip_longest(row.pieces, row.logprobs[: len(row.pieces)]):
        yield from _said(row.text[start : start + length], (entry,) if entry else ())
        start += length
    if not row.pieces:
        yield from _said(row.text, row.logprobs)


def _said(text: str, logprobs: tuple[TextLogprob, ...]) -> Iterator[Said]:
    if text or logprobs:
        yield Said(text, [token_logprob(entry) for entry in logprobs])
