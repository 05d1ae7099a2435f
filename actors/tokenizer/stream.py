"""One choice on its way back: rows of tokens in, rows of text out.

Everything here is a function of the stored request and the tokens taken in so far, however they were cut
into rows: a tokenizer that was restarted replays the committed tokens and stands where the dead one stood.
Text comes with the token that settles it, and what is left at the end with the last token; rows of many
tokens say so piece by piece (`TextRow.pieces`).

Text that could be the beginning of a stop string, or half a character, is held back. A choice
is closed by a row that carries a finish, or by a stop string (`stopped_at`).
"""

from __future__ import annotations

import array
import base64
import itertools
import math
from collections.abc import Callable, Sequence

from actors.answers.thoughts import Place, Thoughts
from actors.tokenizer.codec import Codec
from actors.tokenizer.stops import StopMatcher
from protocols.messages import TextLogprob, TextRow, TokenRow
from protocols.plan import Logprobs
from protocols.request import Finish, TextPrompt, Usage
from protocols.stored import StoredRequest

ECHO_SLICE = 1 << 16
"""Characters of an echoed prompt in one row."""
PROMPT_SLICE = 256
"""Tokens of a listed prompt in one row."""


def prompt_ids(tokens: bytes) -> array.array[int]:
    """Ids of little-endian int32 bytes."""
    return array.array("i", tokens)


class ChoiceStream:
    """State of one choice.

    received: output tokens taken in; reasoned: those of them that made a thought. offset: characters sent.
    closed: nothing more will be sent. stopped_at: number of output tokens at which a stop string ended it, 0
    if none did. frontend: who asked. followers: other frontends that get every row too. resumable: a client
    may come back for it. submit: what the scheduler was sent.
    """

    __slots__ = (
        "_every_row",
        "_include_stop",
        "_matcher",
        "_min_tokens",
        "_names",
        "_prompt",
        "_prompt_tokens",
        "_text",
        "_thinking",
        "_thoughts",
        "_token_ids",
        "_weights",
        "cached",
        "closed",
        "echo",
        "followers",
        "frontend",
        "offset",
        "reasoned",
        "received",
        "resumable",
        "rid",
        "stopped_at",
        "submit",
    )

    def __init__(
        self, stored: StoredRequest, codec: Codec, weights: Callable[[], tuple[str, ...]] = tuple
    ) -> None:
        """weights: tells the versions of the weights that made it so far."""
        submit, options = stored.submit, stored.generate.output
        ids = prompt_ids(submit.tokens)
        self.rid = submit.rid
        self.submit = submit
        self.frontend = stored.generate.origin
        self.followers: set[int] = set()
        self.resumable = bool(stored.generate.client)
        self.received = 0
        self.offset = 0
        self.cached = 0
        self.closed = False
        self.stopped_at = 0
        self._weights = weights
        self.echo = _echo(stored, codec, ids) if options.echo else ""
        self._names = codec.names
        self._prompt_tokens = len(ids)
        self._prompt = ids if options.token_ids or submit.sampling.prompt_logprobs is not None else ids[:0]
        self._min_tokens = submit.sampling.min_tokens
        self._include_stop = options.include_stop
        self._token_ids = options.token_ids
        self._every_row = options.token_ids or submit.sampling.logprobs is not None
        self.reasoned = 0
        self._thinking = options.thinking
        self._thoughts: Thoughts | None = None
        if options.thoughts:
            opening, closing = options.thoughts
            self._thoughts = Thoughts((opening, closing), thinking=options.thinking)
        skip = options.skip_special and codec.special_texts.isdisjoint(options.shown)
        self._text = codec.stream(ids, skip_special=skip)
        self._matcher = StopMatcher(options.stop, include=options.include_stop) if options.stop else None

    def readers(self) -> set[int]:
        """The frontends that get every row."""
        return {self.frontend, *self.followers}

    def opening(self) -> list[TextRow]:
        """What comes before all tokens: the prompt, where it is to be echoed or listed and nothing must be
        read of it first; or an empty row, so that a frontend knows that the request is safe and lets its
        client have the id."""
        self.offset = len(self.echo)
        rows = self._listing(()) if self.submit.sampling.prompt_logprobs is None else []
        return rows or ([TextRow(self.rid, 0, "", 0)] if self.resumable else [])

    def preface(self, row: TokenRow) -> list[TextRow]:
        """What `row` tells of the prompt, if it does, to be sent before its tokens."""
        prompt_output = row.prompt_output
        if prompt_output is None or self.received or self.closed:
            return []
        if prompt_output.pooled:
            state = base64.b64encode(prompt_output.pooled).decode()
            self.offset = len(state)
            return [TextRow(self.rid, 0, state, 0, usage=self._usage())]
        unknown = Logprobs(math.nan)
        return self._listing((unknown, *prompt_output.logprobs))

    def _listing(self, logprobs: tuple[Logprobs, ...]) -> list[TextRow]:
        """The prompt's text where it is echoed, and its tokens where they are listed, in slices."""
        texts = range(0, len(self.echo), ECHO_SLICE)
        lists = range(0, len(self._prompt), PROMPT_SLICE)
        rows: list[TextRow] = []
        for at, first in itertools.zip_longest(texts, lists):
            offset = len(self.echo) if at is None else at
            start = len(self._prompt) if first is None else first
            ids = self._prompt[start : start + PROMPT_SLICE].tolist()
            rows.append(
                TextRow(
                    self.rid,
                    offset,
                    self.echo[offset : offset + ECHO_SLICE],
                    0,
                    usage=self._usage(),
                    first_token=start,
                    token_ids=tuple(ids) if self._token_ids else (),
                    logprobs=tuple(map(self._logprob, ids, logprobs[start : start + PROMPT_SLICE])),
                )
            )
        return rows

    def take(self, row: TokenRow) -> TextRow | None:
        """Take in a row that starts at or before `received`; what is to be sent for it, if anything."""
        if self.closed:
            return None
        seen = self.received - row.start
        assert seen >= 0, "rows are made contiguous before they come here"
        tokens, logprobs = (row.tokens[seen:], row.logprobs[seen:]) if seen else (row.tokens, row.logprobs)
        if not (tokens or row.finish):
            return None
        first = self.received
        if not first:
            self.cached = max(row.cached, 0)
        parts = self._take_parts(tokens, row)
        if self._thoughts is not None:
            self._count_thoughts(self._thoughts, parts)
        text = parts[0] if len(parts) == 1 else "".join(parts)
        if not (text or row.finish or self.closed or self._every_row or not first):
            return None
        pieces: tuple[int, ...] = ()
        if len(parts) > 1:
            pieces = tuple([len(part) for part in parts if part or self._every_row])
        return self._row(row, text, first, tokens, logprobs, pieces if len(pieces) > 1 else ())

    def _take_parts(self, tokens: tuple[int, ...], row: TokenRow) -> list[str]:
        """The text that each token settles; what was held back till the end comes with the last."""
        hides_last = row.stop_token >= 0 and not self._include_stop
        visible = tokens[:-1] if hides_last else tokens
        if self._matcher is None:
            parts = [self._text.feed(token) for token in visible]
        else:
            parts = self._match(self._matcher, visible)
            if self.closed:
                return parts
        self.received += len(tokens)
        if len(parts) < len(tokens) or not parts:
            parts.append("")
        if row.finish:
            self.closed = True
            parts[-1] += self._rest(row.finish)
        return parts

    def _match(self, matcher: StopMatcher, tokens: tuple[int, ...]) -> list[str]:
        """Feed token by token: a match ends the choice at the token that completed it."""
        parts: list[str] = []
        for index, token in enumerate(tokens, self.received + 1):
            part = self._text.feed(token)
            parts.append(matcher.feed(part) if index > self._min_tokens else part)
            if matcher.hit is not None:
                self.received = self.stopped_at = index
                self.closed = True
                break
        return parts

    def _count_thoughts(self, thoughts: Thoughts, parts: list[str]) -> None:
        """A token belongs to a thought when the text stands in one before it or behind it."""
        if thoughts.place is Place.TEXT:
            return
        for number, part in enumerate(parts, self.received - len(parts) + 1):
            before = thoughts.place
            thoughts.feed(part)
            if Place.INSIDE in (before, thoughts.place):
                self.reasoned = max(number, 0)

    def _rest(self, finish: Finish) -> str:
        """What was held back, at the end."""
        rest = self._text.flush()
        matcher = self._matcher
        if matcher is None:
            return rest
        if self.received > self._min_tokens and finish in (Finish.STOP, Finish.LENGTH):
            rest = matcher.feed(rest)
            return rest if matcher.hit is not None else rest + matcher.flush()
        return matcher.flush() + rest

    def aborted(self) -> TextRow:
        """The row that ends it because nobody wants it any more."""
        return TextRow(self.rid, self.offset, "", self.received, Finish.ABORT, usage=self._usage())

    def _row(
        self,
        row: TokenRow,
        text: str,
        first: int,
        tokens: tuple[int, ...],
        logprobs: tuple[Logprobs, ...],
        pieces: tuple[int, ...],
    ) -> TextRow:
        offset, self.offset = self.offset, self.offset + len(text)
        if not (self.closed or self._every_row) and first:
            return TextRow(self.rid, offset, text, self.received, pieces=pieces)
        taken = self.received - first
        finish, stop = self._ending(row)
        return TextRow(
            self.rid,
            offset,
            text,
            self.received,
            finish,
            stop,
            self._usage() if self.closed or not first else None,
            first,
            tokens[:taken] if self._token_ids else (),
            tuple(map(self._logprob, tokens[:taken], logprobs)),
            row.error if finish is Finish.ERROR else None,
            pieces,
        )

    def _ending(self, row: TokenRow) -> tuple[Finish, str | int | None]:
        if self._matcher is not None and self._matcher.hit is not None:
            return Finish.STOP, self._matcher.hit
        return row.finish, row.stop_token if row.stop_token >= 0 else None

    def _usage(self) -> Usage:
        return Usage(
            self._prompt_tokens,
            self.received,
            self.cached,
            self.reasoned,
            self._thinking,
            self._weights(),
        )

    def _logprob(self, token: int, found: Logprobs) -> TextLogprob:
        names = self._names
        top = tuple([(*names[i], value) for i, value in zip(found.ids, found.values, strict=True)])
        return TextLogprob((*names[token], found.chosen), top, (token, *found.ids), found.rank)


def _echo(stored: StoredRequest, codec: Codec, ids: Sequence[int]) -> str:
    prompt = stored.generate.prompt
    if isinstance(prompt, TextPrompt):
        return prompt.text
    return codec.prompt_text(ids, skip_special=stored.generate.output.skip_special)
