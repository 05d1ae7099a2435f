"""Thoughts: what a reasoning model writes between two tags before it answers.

    START ─opening tag─► INSIDE ─closing tag─► AFTER ─► TEXT
      └───────────── anything else ──────────────────────▲

Only at the start of an answer, or where the prompt itself ends with the opening tag. Space around a thought
and in front of the answer that follows it is not shown.
"""

from __future__ import annotations

import enum

from actors.answers.pieces import held_back


class Place(enum.Enum):
    """Where in an answer the text stands."""

    START = enum.auto()
    INSIDE = enum.auto()
    AFTER = enum.auto()
    TEXT = enum.auto()


class Thoughts:
    """Tells thoughts from text. tags: the opening and the closing one; thinking: the prompt ended with the
    opening one."""

    def __init__(self, tags: tuple[str, str], *, thinking: bool) -> None:
        self._opening, self._closing = tags
        self.place = Place.INSIDE if thinking else Place.START
        self._held = ""
        self._shown = False

    def feed(self, text: str) -> tuple[str, str]:
        """What is settled by `text`: of the thought, and of the answer."""
        if self.place is Place.TEXT:
            return "", text
        self._held += text
        thought = ""
        if self.place is Place.START:
            self._open()
        if self.place is Place.INSIDE:
            thought = self._think()
        if self.place is Place.AFTER and (rest := self._held.lstrip()):
            self.place, self._held = Place.TEXT, rest
        return thought, self._take() if self.place is Place.TEXT else ""

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end."""
        rest = self._take()
        match self.place:
            case Place.START:
                return "", rest
            case Place.INSIDE:
                return rest.rstrip() if self._shown else rest.strip(), ""
            case _:
                return "", ""

    def _open(self) -> None:
        start = self._held.lstrip()
        if start.startswith(self._opening):
            self.place, self._held = Place.INSIDE, start[len(self._opening) :]
        elif not self._opening.startswith(start):
            self.place = Place.TEXT

    def _think(self) -> str:
        if not self._shown:
            self._held = self._held.lstrip()
        end = self._held.find(self._closing)
        if end >= 0:
            thought, self._held = self._held[:end].rstrip(), self._held[end + len(self._closing) :]
            self.place = Place.AFTER
        else:
            kept = len(self._held) - held_back(self._held, self._closing)
            thought, self._held = self._held[:kept], self._held[kept:]
        self._shown = self._shown or bool(thought)
        return thought

    def _take(self) -> str:
        held, self._held = self._held, ""
        return held
