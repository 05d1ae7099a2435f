"""JSON that arrives in parts: where a value ends, and a call written as one object."""

from __future__ import annotations

import enum

import msgspec

_SPACE = " \t\n\r"


class RawValue:
    """Finds the end of a JSON value, by its brackets and quotes. done: it has come."""

    __slots__ = ("_bare", "_depth", "_escaped", "_quoted", "_started", "done")

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = self._bare = self._started = False
        self.done = False

    def feed(self, text: str, start: int) -> int:
        """Index just behind what belongs to the value of `text[start:]`, which begins with it at first."""
        for at in range(start, len(text)):
            char = text[at]
            if self._bare and char in ",]}" + _SPACE:
                self.done = True
                return at
            self._take(char)
            if self.done:
                return at + 1
        return len(text)

    def _take(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped = char == "\\"
            self._quoted = char != '"'
            self.done = not self._quoted and not self._depth
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.done = self._depth <= 0
        elif not self._started:
            self._bare = True
        self._started = True


class _Expect(enum.Enum):
    OPEN = enum.auto()
    KEY = enum.auto()
    COLON = enum.auto()
    VALUE = enum.auto()
    WITHIN = enum.auto()
    COMMA = enum.auto()


class CallObject:
    """One call, written as `{"name": …, "arguments": {…}}`, in any order and with whatever else.

    name: None until it is known. arguments: JSON that has come since the last `take_arguments`. raw: all
    that was taken in, while it may turn out to be no call at all. done, failed: it is complete, or no call.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments = ""
        self.raw = ""
        self.done = self.failed = self.argued = False
        self._expect = _Expect.OPEN
        self._key: str | None = None
        self._part = ""
        self._value = RawValue()
        self._streams = False

    def feed(self, text: str) -> int:
        """Take `text` in as far as it belongs to the object; how far that is."""
        at = 0
        while at < len(text) and not (self.done or self.failed):
            if self._expect is _Expect.WITHIN:
                at = self._within(text, at)
            else:
                at += self._take(text[at])
        self.raw += text[:at]
        return at

    def take_arguments(self) -> str:
        """What has come of the arguments."""
        text, self.arguments = self.arguments, ""
        return text

    def _take(self, char: str) -> bool:
        """What stands between values; False for a character with which one begins."""
        if char in _SPACE:
            return True
        match self._expect, char:
            case _Expect.OPEN, "{":
                self._expect = _Expect.KEY
            case _Expect.KEY, '"':
                self._begin(None)
                return False
            case ((_Expect.KEY | _Expect.COMMA), "}"):
                self._finish()
            case _Expect.COLON, ":":
                self._expect = _Expect.VALUE
            case _Expect.VALUE, _ if char not in ",:]}":
                self._begin(self._key)
                self._streams = self._key in ("arguments", "parameters") and char == "{"
                return False
            case _Expect.COMMA, ",":
                self._expect = _Expect.KEY
            case _:
                self.failed = True
        return True

    def _begin(self, key: str | None) -> None:
        """A value begins: that of `key`, or with None a key itself."""
        self._key, self._part, self._value, self._streams = key, "", RawValue(), False
        self._expect = _Expect.WITHIN

    def _within(self, text: str, at: int) -> int:
        end = self._value.feed(text, at)
        if self._streams:
            self.arguments += text[at:end]
            self.argued = True
        else:
            self._part += text[at:end]
        if self._value.done:
            self._settle()
        return end

    def _settle(self) -> None:
        """A key or a value is complete."""
        if self._key is None:
            self._key = str(self._decoded())
            self._expect = _Expect.COLON
            return
        self._expect = _Expect.COMMA
        if self._key == "name":
            name = self._decoded()
            self.name = name if isinstance(name, str) and name else None
            self.failed = self.failed or self.name is None
        elif self._key in ("arguments", "parameters") and not self._streams:
            value = self._decoded()
            self.arguments += "{}" if value is None else value if isinstance(value, str) else self._part
            self.argued = True

    def _decoded(self) -> object:
        try:
            return msgspec.json.decode(self._part)
        except (ValueError, RecursionError):
            self.failed = True
            return ""

    def _finish(self) -> None:
        self.failed = self.name is None
        self.done = not self.failed
        if self.done and not self.argued:
            self.arguments = "{}"
