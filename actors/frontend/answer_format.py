"""How an answer is to be read: which formats of thoughts and calls are looked for in its text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec

from actors.answers.formats import THOUGHT_FORMATS, TOOL_FORMATS, ThoughtFormat, ToolFormat
from actors.answers.parser import AnswerParser
from protocols.config import Config
from protocols.request import OutputOptions


@dataclasses.dataclass(frozen=True)
class AnswerFormat:
    """thoughts, tools: formats to look for, None for none. names: the functions that may be called."""

    thoughts: ThoughtFormat | None = None
    tools: ToolFormat | None = None
    names: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to look for."""
        return self.thoughts is not None or self.tools is not None

    def parser(self) -> AnswerParser:
        """A parser for one answer."""
        return AnswerParser(self.thoughts, self.tools, self.names)

    def adapted(self, output: OutputOptions) -> OutputOptions:
        """What the tokenizer must do for it: show the tags, count thoughts."""
        thoughts = self.thoughts.tags if self.thoughts is not None else ()
        calls = self.tools.tags if self.tools is not None else ()
        return msgspec.structs.replace(output, thoughts=thoughts, shown=(*thoughts, *calls))

    def call_id(self, key: str, index: int) -> str:
        """The id of call `index` of the answer that `key`, hexadecimal and random, stands for."""
        length = self.tools.id_length if self.tools is not None else 0
        if not length:
            return f"call_{key}{index:04x}"
        return f"{key[: length - 3]}{index:03x}"


def answer_format_of(config: Config, names: Sequence[str], choice: Any) -> AnswerFormat:
    """The format of the answer to a request that offers the functions `names`. choice: its `tool_choice`."""
    thoughts = THOUGHT_FORMATS.get(config.reasoning_parser)
    if not names or choice == "none":
        return AnswerFormat(thoughts)
    return AnswerFormat(thoughts, TOOL_FORMATS.get(config.tool_parser), tuple(names))
