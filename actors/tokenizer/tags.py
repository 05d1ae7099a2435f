"""A structural tag as a grammar: Lark rules, and named grammars of which they make use."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, assert_never

from actors.tokenizer.guidance import Grammar
from protocols.errors import UserError
from protocols.structural_tags import (
    AnyText,
    ConstString,
    Format,
    JsonSchema,
    Or,
    OwnGrammar,
    Regex,
    Tag,
    TagsWithSeparator,
    TriggeredTags,
)
from protocols.structural_tags import Sequence as InOrder

Ends = tuple[str, ...]

_TEXT = "/(?s:.*)/"


class TagGrammar:
    """Gathers rules for one format. literal: a text in Lark. special: what it has of special tokens and of
    text. inner: the grammar of a schema, an expression or a client's grammar. parts: those, by their
    names."""

    def __init__(
        self,
        param: str,
        literal: Callable[[str], str],
        special: Callable[[str], Sequence[int | str]],
        inner: Callable[[JsonSchema | Regex | OwnGrammar], Grammar],
    ) -> None:
        self.parts: dict[str, Grammar] = {}
        self._param, self._literal, self._special, self._inner = param, literal, special, inner
        self._rules: list[str] = []

    def lark(self, format: Format) -> str:
        """The grammar of the whole text."""
        start = self._of(format, ())
        return "\n".join(["%llguidance {}", *self._rules, f"start: {start}"])

    def _of(self, format: Format, ends: Ends) -> str:
        """An expression for `format` and, behind it, one of `ends`, if there are any."""
        match format:
            case AnyText():
                return self._free((), ends)
            case InOrder():
                *first, last = format.elements
                return " ".join([*(self._of(each, ()) for each in first), self._of(last, ends)])
            case Or():
                return self._either(self._of(each, ends) for each in format.elements)
            case Tag():
                return f"{self._tag(format)} {self._one_of(ends)}"
            case TriggeredTags():
                return self._triggered(format, ends)
            case TagsWithSeparator():
                return f"{self._separated(format)} {self._one_of(ends)}"
            case ConstString():
                return f"{self._text(format.value)} {self._one_of(ends)}"
            case JsonSchema() | Regex() | OwnGrammar():
                name = f"part_{len(self.parts)}"
                self.parts[name] = self._inner(format)
                return f"@{name} {self._one_of(ends)}"
            case _:
                assert_never(format)

    def _tag(self, tag: Tag, trigger: str = "") -> str:
        """Behind its trigger."""
        return f"{self._text(tag.begin.removeprefix(trigger))} {self._of(tag.content, tag.ends)}"

    def _separated(self, format: TagsWithSeparator) -> str:
        one = self._rule(self._either(map(self._tag, format.tags)))
        more = "" if format.stop_after_first else f"({self._text(format.separator)} {one})*"
        return f"({one} {more})" if format.at_least_one else f"({one} {more})?"

    def _triggered(self, format: TriggeredTags, ends: Ends) -> str:
        behind = [(trigger, self._behind(trigger, format.tags)) for trigger in format.triggers]
        behind = [(trigger, tags) for trigger, tags in behind if tags]
        first = self._either(f"{self._text(trigger)} {tags}" for trigger, tags in behind)
        found = self._either(f"{self._up_to(trigger)} {tags}" for trigger, tags in behind)
        rest = self._free(format.triggers, ends)
        if format.stop_after_first:
            one = f"{first if format.at_least_one else found} {self._one_of(ends)}"
            return one if format.at_least_one else self._either([one, rest])
        return f"{first if format.at_least_one else ''} {found}* {rest}"

    def _behind(self, trigger: str, tags: Sequence[Tag]) -> str:
        """A rule for the tags that a trigger begins."""
        mine = [tag for tag in tags if tag.begin.startswith(trigger)]
        return self._rule(self._either(self._tag(tag, trigger) for tag in mine)) if mine else ""

    def _free(self, without: Sequence[str], ends: Ends) -> str:
        """Text, up to the first of `ends`, or to the end of all."""
        if ends:
            return self._either(map(self._up_to, ends))
        texts = "|".join(_pattern(each) for each in without if isinstance(self._special(each)[0], str))
        return self._terminal(f"{_TEXT} & ~/(?s:.*)({texts})(?s:.*)/" if texts else _TEXT)

    def _up_to(self, closing: str) -> str:
        """Any text, then the first `closing`."""
        parts = self._special(closing)
        if len(parts) == 1 and isinstance(parts[0], str):
            return self._rule(f"{self._terminal(_TEXT)} {self._literal(closing)}", "[lazy]")
        if isinstance(parts[0], str):
            raise UserError(
                f"{self._param}: in {closing[:50]!r} a special token comes behind text, which no trigger"
                " and no end of free text may have.",
                param=self._param,
                code="unsupported",
            )
        return f"{self._terminal(_TEXT)} {self._text(closing)}"

    def _one_of(self, texts: Ends) -> str:
        return self._either(map(self._text, texts)) if texts else ""

    def _text(self, text: str) -> str:
        parts = self._special(text)
        return " ".join(f"<[{part}]>" if isinstance(part, int) else self._literal(part) for part in parts)

    def _either(self, options: Any) -> str:
        return "(" + " | ".join(option.strip() or '""' for option in options) + ")"

    def _rule(self, body: str, how: str = "") -> str:
        self._rules.append(f"rule_{len(self._rules)}{how}: {body}")
        return f"rule_{len(self._rules) - 1}"

    def _terminal(self, body: str) -> str:
        self._rules.append(f"TEXT_{len(self._rules)}: {body}")
        return f"TEXT_{len(self._rules) - 1}"


def _pattern(text: str) -> str:
    """A text as a regular expression between slashes."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")
