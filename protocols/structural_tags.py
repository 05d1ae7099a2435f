"""Structural tags: text in which marked parts have a required form, as vLLM and SGLang take them
(`structural_tag`).

A tag is what stands between two texts, its `begin` and its `end`. Where calls and other marked parts lie
within free text, a trigger tells that one begins.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any, TypeAlias

import msgspec

from protocols.errors import UserError


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    pass


class ConstString(_Part, frozen=True, tag="const_string"):
    """This text."""

    value: str


class JsonSchema(_Part, frozen=True, tag="json_schema"):
    """JSON that fits a schema."""

    json_schema: dict[str, Any] | bool


class Regex(_Part, frozen=True, tag="regex"):
    """Text that a regular expression matches whole."""

    pattern: str


class OwnGrammar(_Part, frozen=True, tag="grammar"):
    """Text of a grammar, EBNF or Lark."""

    grammar: str


class AnyText(_Part, frozen=True, tag="any_text"):
    """Any text, up to what ends the tag that it is in."""


class Sequence(_Part, frozen=True, tag="sequence"):
    """Several parts in order."""

    elements: list[Format]


class Or(_Part, frozen=True, tag="or"):
    """One of several parts."""

    elements: list[Format]


class Tag(_Part, frozen=True, tag="tag"):
    """A content between two texts, of which the second may be one of several."""

    begin: str
    content: Format
    end: str | list[str]

    @property
    def ends(self) -> tuple[str, ...]:
        """What may close it, none for nothing."""
        ends = [self.end] if isinstance(self.end, str) else self.end
        return () if ends == [""] else tuple(ends)


class TriggeredTags(_Part, frozen=True, tag="triggered_tags"):
    """Free text in which tags stand; a trigger, with which a tag begins, does not stand in it otherwise.
    at_least_one: it begins with a tag. stop_after_first: it ends with the first one."""

    triggers: list[str]
    tags: list[Tag]
    at_least_one: bool = False
    stop_after_first: bool = False


class TagsWithSeparator(_Part, frozen=True, tag="tags_with_separator"):
    """Tags and nothing else, with a text between them."""

    tags: list[Tag]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


Format: TypeAlias = (
    ConstString
    | JsonSchema
    | Regex
    | OwnGrammar
    | AnyText
    | Sequence
    | Or
    | Tag
    | TriggeredTags
    | TagsWithSeparator
)


class _Structure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    begin: str
    schema: dict[str, Any] | bool
    end: str


class _Legacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    structures: list[_Structure]
    triggers: list[str]


class _Whole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Format


_UNSERVED = (".type`", "unknown field")
"""What the library says of a type, or of a field, that is not known here."""


def read(value: dict[str, Any], param: str) -> Format:
    """The format of a structural tag in either form, `{structures, triggers}` or `{format}`; the key `type`
    beside them is not looked at. Raises UserError."""
    fields = {name: part for name, part in value.items() if name != "type"}
    try:
        if "structures" in fields or "triggers" in fields:
            found: Format = _modern(msgspec.convert(fields, _Legacy))
        else:
            found = msgspec.convert(fields, _Whole).format
    except msgspec.ValidationError as error:
        code = "unsupported" if any(each in str(error) for each in _UNSERVED) else None
        raise UserError(f"{param}: {error}.", param=param, code=code) from error
    _check(found, param)
    return found


def _modern(legacy: _Legacy) -> TriggeredTags:
    tags = [Tag(each.begin, JsonSchema(each.schema), each.end) for each in legacy.structures]
    return TriggeredTags(legacy.triggers, tags)


def is_open(format: Format) -> bool:
    """Whether only the text behind it shows where it ends."""
    match format:
        case AnyText():
            return True
        case TriggeredTags():
            return not (format.at_least_one and format.stop_after_first)
        case Sequence():
            return is_open(format.elements[-1])
        case Or():
            return any(map(is_open, format.elements))
        case Tag():
            return not format.ends and is_open(format.content)
        case _:
            return False


def _check(format: Format, param: str) -> None:
    """UserError where a part makes no sense where it is."""
    match format:
        case Sequence() | Or():
            _some(format.elements, "elements", param)
            for element in format.elements:
                _check(element, param)
            if isinstance(format, Sequence) and any(map(is_open, format.elements[:-1])):
                raise UserError(
                    f"{param}: within a sequence only the last element may be text without an end.",
                    param=param,
                )
        case Tag():
            if isinstance(format.end, list) and not all([format.end, *format.end]):
                raise UserError(
                    f"{param}: a list of ends must not be empty, or hold an empty one.", param=param
                )
            _check(format.content, param)
        case TriggeredTags() | TagsWithSeparator():
            _some(format.tags, "tags", param)
            for tag in format.tags:
                _check(tag, param)
                if is_open(tag) and not format.stop_after_first:
                    raise UserError(f"{param}: the tag {tag.begin[:50]!r} needs an end.", param=param)
            if isinstance(format, TriggeredTags):
                _check_triggers(format, param)
        case _:
            pass


def _check_triggers(format: TriggeredTags, param: str) -> None:
    triggers = format.triggers
    if not all([triggers, *triggers]):
        raise UserError(f"{param}: triggers must have at least one text, none of them empty.", param=param)
    for i, trigger in enumerate(triggers):
        if any(other.startswith(trigger) for other in triggers[:i] + triggers[i + 1 :]):
            raise UserError(f"{param}: another trigger begins with {trigger[:50]!r}.", param=param)
    for tag in format.tags:
        if not any(tag.begin.startswith(trigger) for trigger in triggers):
            raise UserError(f"{param}: no trigger begins the tag {tag.begin[:50]!r}.", param=param)


def _some(items: Items[object], name: str, param: str) -> None:
    if not items:
        raise UserError(f"{param}: {name} must not be empty.", param=param)
