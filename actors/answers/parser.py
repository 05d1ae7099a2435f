"""Takes an answer apart: thoughts first, then calls and text."""

from __future__ import annotations

from collections.abc import Collection

from actors.answers.calls import CallParser
from actors.answers.formats import ThoughtFormat, ToolFormat
from actors.answers.pieces import Piece, Text, Thought
from actors.answers.thoughts import Thoughts


class AnswerParser:
    """Takes one answer apart. thoughts, tools: the formats to look for, None for none; names: of the
    functions that are offered."""

    def __init__(
        self, thoughts: ThoughtFormat | None, tools: ToolFormat | None, names: Collection[str] = ()
    ) -> None:
        self._format = thoughts
        self._thoughts = Thoughts(thoughts.tags, thinking=False) if thoughts is not None else None
        self._calls: CallParser | None = tools.parser(names) if tools is not None else None

    def begin(self, *, thinking: bool) -> None:
        """Told before the first text: whether the prompt ends in the midst of a thought."""
        if self._format is not None and thinking:
            self._thoughts = Thoughts(self._format.tags, thinking=True)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` settles."""
        if self._thoughts is None:
            return self._answer(text)
        thought, text = self._thoughts.feed(text)
        pieces: list[Piece] = [Thought(thought)] if thought else []
        return pieces + self._answer(text)

    def flush(self) -> list[Piece]:
        """What was held back, at the end."""
        pieces: list[Piece] = []
        if self._thoughts is not None:
            thought, text = self._thoughts.flush()
            pieces += [Thought(thought)] if thought else []
            pieces += self._answer(text)
        return pieces + (self._calls.flush() if self._calls is not None else [])

    def _answer(self, text: str) -> list[Piece]:
        if not text:
            return []
        return self._calls.feed(text) if self._calls is not None else [Text(text)]
