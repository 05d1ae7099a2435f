"""Calls of functions, in the formats in which models write them.

    Hermes, Qwen   <tool_call>
                   {"name": "f", "arguments": {…}}
                   </tool_call>
    Llama 3        {"name": "f", "parameters": {…}}; …       the whole answer, perhaps behind <|python_tag|>
    Mistral        [TOOL_CALLS][{"name": "f", "arguments": {…}}, …]
                   [TOOL_CALLS]f[ARGS]{…}[TOOL_CALLS]…       (later models)

Text that begins like a call but turns out to be none is shown as text. White space around calls is not shown.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Collection

from actors.answers.json_value import CallObject, RawValue
from actors.answers.pieces import CallArguments, CallBegun, CallEnded, Piece, Text, held_back

_Step = Callable[[], bool]


class CallParser(abc.ABC):
    """Tells calls from text. names: the functions that are offered. `_step` is the parser's state: a method
    that takes what it can from `_rest`, and returns whether the next state should run at once."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._rest = ""
        self._out: list[Piece] = []
        self._calls = 0
        self._begun = False
        self._object = CallObject()
        self._opening = ""
        self._step: _Step = self._start

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` settles."""
        self._rest += text
        while self._step():
            pass
        out, self._out = self._out, []
        return out

    def flush(self) -> list[Piece]:
        """What was held back, at the end."""
        if self._begun:
            self._end_call()
        elif self._step == self._within:
            self._show(self._opening + self._object.raw)
        elif self._step in (self._outside, self._start):
            self._show(self._rest)
        self._rest = ""
        out, self._out = self._out, []
        return out

    @abc.abstractmethod
    def _start(self) -> bool:
        """State: at the start of the answer."""

    @abc.abstractmethod
    def _outside(self) -> bool:
        """State: in text."""

    @abc.abstractmethod
    def _between(self) -> bool:
        """State: behind a call."""

    def _show(self, text: str) -> None:
        if text:
            self._out.append(Text(text))

    def _go(self, step: _Step) -> bool:
        self._step = step
        return True

    def _begin_object(self, opening: str) -> bool:
        """A JSON object comes that should be a call, behind the text `opening`."""
        self._object, self._opening = CallObject(), opening
        return self._go(self._within)

    def _within(self) -> bool:
        """State: in a call's object."""
        call = self._object
        self._rest = self._rest[call.feed(self._rest) :]
        if not self._begun and call.name is not None and (call.argued or call.done):
            if not self._wanted(call.name):
                call.failed = True
            else:
                self._begin_call(call.name)
        if self._begun:
            self._argue(call.take_arguments())
        if call.failed and not self._begun:
            self._show(self._opening + call.raw)
            return self._go(self._outside)
        if call.done or call.failed:
            self._end_call()
            return self._go(self._between)
        return False

    def _wanted(self, name: str) -> bool:
        return True

    def _begin_call(self, name: str) -> None:
        self._begun = True
        self._out.append(CallBegun(self._calls, name))

    def _argue(self, text: str) -> None:
        if text:
            self._out.append(CallArguments(self._calls, text))

    def _end_call(self) -> None:
        self._begun = False
        self._out.append(CallEnded(self._calls))
        self._calls += 1

    def _seek(self, marker: str) -> bool:
        """Pass on the text before `marker`; whether the marker has come, which is dropped."""
        at = self._rest.find(marker)
        if at >= 0:
            self._show(self._rest[:at].rstrip())
            self._rest = self._rest[at + len(marker) :]
            return True
        shown = len(self._rest) - held_back(self._rest, marker)
        self._show(self._rest[:shown])
        self._rest = self._rest[shown:]
        return False

    def _skip_space(self) -> str:
        """The next character that is no space, "" where it has not come."""
        self._rest = self._rest.lstrip()
        return self._rest[:1]


class HermesCalls(CallParser):
    """Each call in tags of its own."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def _start(self) -> bool:
        return self._go(self._outside)

    def _outside(self) -> bool:
        return self._seek(self.OPEN) and self._begin_object(self.OPEN)

    def _between(self) -> bool:
        """State: the closing tag is to come."""
        if not self._skip_space():
            return False
        if self._rest.startswith(self.CLOSE):
            self._rest = self._rest[len(self.CLOSE) :]
            return self._go(self._behind)
        return not self.CLOSE.startswith(self._rest) and self._go(self._behind)

    def _behind(self) -> bool:
        return bool(self._skip_space()) and self._go(self._outside)


class LlamaCalls(CallParser):
    """Calls are the whole answer. Without tags, only an object that names an offered function is one."""

    TAG = "<|python_tag|>"

    def _start(self) -> bool:
        start = self._rest.lstrip()
        if start.startswith("{"):
            opening = self._rest[: -len(start)]
            self._rest = start
            return self._begin_object(opening)
        if start.startswith(self.TAG):
            self._rest = start[len(self.TAG) :]
            return self._go(self._behind_tag)
        return not self.TAG.startswith(start) and self._go(self._outside)

    def _behind_tag(self) -> bool:
        first = self._skip_space()
        return bool(first) and (self._begin_object("") if first == "{" else self._go(self._outside))

    def _outside(self) -> bool:
        self._show(self._rest)
        self._rest = ""
        return False

    def _between(self) -> bool:
        self._rest = self._rest.lstrip(" \t\n\r;,")
        first = self._rest[:1]
        return bool(first) and (self._begin_object("") if first == "{" else self._go(self._outside))

    def _wanted(self, name: str) -> bool:
        return name in self._names


class MistralCalls(CallParser):
    """Behind one token, as a JSON list; or each behind that token, its name before its arguments."""

    OPEN, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
    _HEADER = re.compile(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*$")

    def _start(self) -> bool:
        self._value = RawValue()
        return self._go(self._outside)

    def _outside(self) -> bool:
        return self._seek(self.OPEN) and self._go(self._opened)

    def _opened(self) -> bool:
        first = self._skip_space()
        if first == "[":
            self._rest = self._rest[1:]
            return self._go(self._listed)
        if first == "{":
            return self._begin_object(self.OPEN)
        return bool(first) and self._go(self._header)

    def _listed(self) -> bool:
        first = self._skip_space()
        return bool(first) and (self._begin_object(self.OPEN) if first == "{" else self._go(self._between))

    def _between(self) -> bool:
        """State: behind an object; a comma, or the end of the list, is to come."""
        first = self._skip_space()
        if first == ",":
            self._rest = self._rest[1:]
            return self._go(self._listed)
        if first == "]":
            self._rest = self._rest[1:]
            return self._go(self._behind)
        return bool(first) and self._go(self._outside)

    def _behind(self) -> bool:
        return bool(self._skip_space()) and self._go(self._outside)

    def _header(self) -> bool:
        """State: in the name, which ends at the bracket that opens the arguments."""
        end = self._rest.find("{")
        if end < 0:
            return False
        match = self._HEADER.match(self._rest[:end])
        if match is None:
            self._show(self.OPEN + self._rest[:end])
            self._rest = self._rest[end:]
            return self._go(self._outside)
        self._rest = self._rest[end:]
        self._begin_call(match[1])
        self._value = RawValue()
        return self._go(self._arguments)

    def _arguments(self) -> bool:
        end = self._value.feed(self._rest, 0)
        self._argue(self._rest[:end])
        self._rest = self._rest[end:]
        if not self._value.done:
            return False
        self._end_call()
        return self._go(self._behind)

    def flush(self) -> list[Piece]:
        """See CallParser; a name without arguments is text."""
        if self._step in (self._header, self._opened):
            self._rest = self.OPEN + self._rest
            self._step = self._outside
        return super().flush()
