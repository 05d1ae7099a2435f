"""Stop strings: found wherever they lie in the text, never leaked in part.

Which match counts: text arrives token by token, and the first token that completes any stop string ends
the text. Among the matches complete by then the one that starts earliest wins, and among those that
start at the same place the longest. A match never waits for a longer one: that would cost more tokens.

Knuth, Morris and Pratt's automaton (1977) for each string: after every character, the length of the longest
suffix of the text that is a prefix of the string. The greatest of these lengths is the text that could
still become a match, and just that much is held back. Each character is looked at O(1) times.
"""

from __future__ import annotations

import array
import functools

from protocols.errors import UserError
from protocols.request import MAX_STOP_CHARS, MAX_STOPS


def check_stops(stops: tuple[str, ...]) -> None:
    """Refuse (UserError, 400) more or longer stop strings than are supported, and empty ones."""
    if len(stops) > MAX_STOPS:
        raise UserError(f"stop may hold at most {MAX_STOPS} strings, not {len(stops)}.", param="stop")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise UserError(f"a stop string must have 1 to {MAX_STOP_CHARS} characters.", param="stop")


@functools.lru_cache(maxsize=256)
def _borders(pattern: str) -> array.array[int]:
    """KMP's failure function: entry i is the longest proper border of pattern[: i + 1]."""
    borders = array.array("H", [0]) * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = borders[length - 1]
        length += pattern[i] == pattern[length]
        borders[i] = length
    return borders


class _Automaton:
    """One stop string. matched: how much of it the text ends with."""

    __slots__ = ("_borders", "matched", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.matched = 0
        self._borders = _borders(pattern)

    def advance(self, text: str) -> int:
        """Take `text` in; index just behind the first match in it, or -1."""
        pattern, borders, matched = self.pattern, self._borders, self.matched
        at, end = 0, len(text)
        while at < end:
            if not matched:
                at = text.find(pattern[0], at)
                if at < 0:
                    break
            char = text[at]
            while matched and char != pattern[matched]:
                matched = borders[matched - 1]
            matched += char == pattern[matched]
            at += 1
            if matched == len(pattern):
                return at
        self.matched = matched
        return -1


class StopMatcher:
    """Looks for stop strings in a text that arrives in parts.

    hit: the stop string found, None before. include: the stop string stays in the text, so nothing
    needs to be held back.
    """

    __slots__ = ("_automata", "_first", "_held", "hit", "include")

    def __init__(self, stops: tuple[str, ...], *, include: bool) -> None:
        self._automata = [_Automaton(stop) for stop in stops]
        self._first = frozenset(stop[0] for stop in stops)
        self._held = ""
        self.hit: str | None = None
        self.include = include

    def feed(self, text: str) -> str:
        """The text that may be shown after `text` came in. After a hit: all that will ever be shown."""
        if not self._held and self._first.isdisjoint(text) and not self._matching():
            return text
        matches = [
            (end - len(automaton.pattern), -len(automaton.pattern), automaton.pattern)
            for automaton in self._automata
            if (end := automaton.advance(text)) >= 0
        ]
        return self._stop(text, *min(matches)) if matches else self._hold(text)

    def flush(self) -> str:
        """The text held back, when the output ends without a hit."""
        held, self._held = self._held, ""
        return held

    def _matching(self) -> bool:
        return self.include and any(automaton.matched for automaton in self._automata)

    def _stop(self, text: str, start: int, negative_length: int, pattern: str) -> str:
        """`start` counts from the start of `text`; below 0 it lies in what came before."""
        self.hit = pattern
        if self.include:
            return text[: start - negative_length]
        return (self._held + text)[: start + len(self._held)]

    def _hold(self, text: str) -> str:
        if self.include:
            return text
        keep = max(automaton.matched for automaton in self._automata)
        whole = self._held + text
        shown = len(whole) - keep
        self._held = whole[shown:]
        return whole[:shown]
