"""JSON schemas as grammars of our own, in which whatever a schema leaves open comes to an end.

A model that decodes greedily may write the digits of a third for ever, and one that draws may never end a
name in an e-mail address. So numbers have the digits that programs write (`ranges`), names that a schema
leaves free have NAME characters at most, and formats the lengths that their standards give them. A text goes
on as long as the schema lets it.

The texts of such a grammar are some of those of llguidance's own for the same schema, which has been asked
before whether it takes the schema at all. What is not understood here is left to it as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from actors.tokenizer import ranges
from actors.tokenizer.guidance import quoted
from actors.tokenizer.schema_keys import (
    DIFFERENT,
    KEYWORDS,
    REMARKS,
    SEVERAL,
    WITHOUT,
    NotUnderstood,
    Schema,
    count,
    fits,
    is_number,
    limit,
    merged,
    pointed,
    properties_of,
    required_of,
    room_for_others,
)

NAME = 128
"""Characters of a property's name that the schema does not give."""

_SPACE = r"/( |\n[ \t]{0,24})?/"
"""Between the parts of JSON: nothing, a space, or a new line with its indentation."""

_CHARACTER = r'[^"\\\x00-\x1F\x7F]|\\["\\bfnrt]'
_CONTROL = r"\\u00([01][0-9a-fA-F]|7[fF])"

_LABELS = r"[^.@]{1,63}(\.[^.@]{1,63}){0,7}$"
_FORMATS: dict[str, Schema] = {
    "email": {"maxLength": 254, "pattern": rf"^[^@]{{1,64}}@{_LABELS}"},
    "hostname": {"maxLength": 253},
    "date-time": {"maxLength": 40},
    "time": {"maxLength": 30},
    "duration": {"maxLength": 50},
    "uri": {"maxLength": 2000},
}
"""Where a standard, or good sense, ends what the form alone leaves open."""

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_KEYS = {
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "string": {"minLength", "maxLength", "pattern", "format", WITHOUT},
    "array": {"items", "prefixItems", "minItems", "maxItems", DIFFERENT},
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
}
_KEYS["number"] = _KEYS["integer"]
_COMBINED = ("$ref", "allOf", "anyOf", "oneOf", "const", "enum")
_READ = {"type", *_COMBINED, *(key for keys in _KEYS.values() for key in keys)}
_UNREAD = (KEYWORDS | {SEVERAL}) - _READ - REMARKS
_MULTIPLES = 10**15
"""Multiples of a number lie below this."""


def bounded(schema: Any) -> str:
    """A grammar in Lark for the JSON of a schema. Raises NotUnderstood."""
    return _Grammar(schema).lark()


class _Grammar:
    """The rules and terminals of one schema, each once."""

    def __init__(self, schema: Any) -> None:
        if isinstance(schema, dict):
            schema = {key: value for key, value in schema.items() if key not in ("$id", "id", "x-guidance")}
        self._root = schema
        self._names: dict[str, str] = {}
        self._lines: list[str] = []
        self._pending: list[str] = []

    def lark(self) -> str:
        """All of it."""
        start = self._of(self._root)
        while self._pending:
            reference = self._pending.pop()
            self._lines.append(f"{self._names[reference]}: {self._of(self._meant(reference))}")
        lines = [
            "%llguidance {}",
            f"start: {start}",
            *self._lines,
            f"SPACE: {_SPACE}",
            'COMMA: SPACE "," SPACE',
            'COLON: SPACE ":" SPACE',
            'OBJECT: "{" SPACE',
            'OBJECT_END: SPACE "}"',
            'NO_OBJECT: "{" SPACE "}"',
            'ARRAY: "[" SPACE',
            'ARRAY_END: SPACE "]"',
            'NO_ARRAY: "[" SPACE "]"',
        ]
        return "\n".join(lines)

    def _rule(self, body: str) -> str:
        return self._named("rule", body)

    def _terminal(self, body: str) -> str:
        return self._named("TERMINAL", body)

    def _named(self, kind: str, body: str) -> str:
        name = self._names.get(body)
        if name is None:
            name = self._names[body] = f"{kind}_{len(self._names)}"
            self._lines.append(f"{name}: {body}")
        return name

    def _leaf(self, schema: Schema) -> str:
        """A text, by llguidance's own reading."""
        return self._rule("%json " + json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}}))

    # --- any schema

    def _of(self, schema: Any) -> str:
        """An expression for the JSON of a schema."""
        if schema is True:
            schema = {}
        if not isinstance(schema, dict) or _UNREAD & schema.keys():
            raise NotUnderstood
        said = _READ.intersection(schema)
        combined = [key for key in _COMBINED if key in said]
        if not combined:
            return self._by_type(schema)
        (key, *others) = combined
        if key == "allOf":
            return self._of(merged(schema, [self._resolved(part) for part in schema["allOf"]]))
        if others or (said - {key, "type"} and key not in ("anyOf", "oneOf")):
            raise NotUnderstood
        match key:
            case "$ref" if said == {"$ref"}:
                return self._reference(schema["$ref"])
            case "anyOf" | "oneOf":
                # llguidance takes oneOf only where no text fits two of them.
                beside = {each: schema[each] for each in schema if each != key}
                return self._either(self._of(self._together(beside, option)) for option in schema[key])
            case "const" | "enum":
                values = schema["enum"] if key == "enum" else [schema["const"]]
                type = schema.get("type")
                found = [value for value in values if fits(value, type)]
                return self._values([int(value) for value in found] if type == "integer" else found)
            case _:
                raise NotUnderstood

    def _together(self, beside: Schema, option: Any) -> Any:
        """What fits both."""
        return merged(beside, [self._resolved(option)]) if _READ & beside.keys() else option

    def _resolved(self, part: Any) -> Any:
        """What a part of another schema is."""
        if isinstance(part, dict) and part.keys() == {"$ref"}:
            return self._meant(part["$ref"])
        return part

    def _either(self, options: Iterable[str]) -> str:
        found = list(dict.fromkeys(options))
        return found[0] if len(found) == 1 else self._rule(" | ".join(found))

    def _meant(self, reference: str) -> Any:
        found = pointed(self._root, reference)
        if isinstance(found, dict) and {"$id", "id"} & found.keys():
            raise NotUnderstood
        return found

    def _reference(self, reference: Any) -> str:
        pointed(self._root, reference)
        if reference not in self._names:
            self._names[reference] = f"ref_{len(self._names)}"
            self._pending.append(reference)
        return self._names[reference]

    def _values(self, values: Sequence[Any]) -> str:
        plain = [value for value in values if not isinstance(value, list | dict)]
        options = [self._value(value) for value in values if isinstance(value, list | dict)]
        if plain:
            literals = (quoted(json.dumps(value, ensure_ascii=False)) for value in plain)
            options.append(self._terminal(" | ".join(dict.fromkeys(literals))))
        if not options:
            raise NotUnderstood
        return self._either(options)

    def _value(self, value: list[Any] | dict[str, Any]) -> str:
        if isinstance(value, list):
            return self._array(
                {"prefixItems": [{"const": item} for item in value], "items": False}, len(value)
            )
        fields = {name: {"const": item} for name, item in value.items()}
        return self._object({"properties": fields, "required": [*fields], "additionalProperties": False})

    # --- by type

    def _by_type(self, schema: Schema) -> str:
        types = schema.get("type", [each for each in _TYPES if each != "integer"])
        types = [types] if isinstance(types, str) else types
        if not isinstance(types, list) or not types or not all(each in _TYPES for each in types):
            raise NotUnderstood
        if "number" in types:
            types = [each for each in types if each != "integer"]
        return self._either(self._typed(each, schema) for each in types)

    def _typed(self, type: str, schema: Schema) -> str:
        own = {key: schema[key] for key in schema if key in _KEYS.get(type, ())}
        match type:
            case "null":
                return '"null"'
            case "boolean":
                return self._terminal('"true" | "false"')
            case "string":
                return self._text(own)
            case "array":
                return self._rule_of(type, own, lambda: self._array(own, count(own, "minItems", 0)))
            case "object":
                return self._rule_of(type, own, lambda: self._object(own))
            case _:
                return self._number(type, own)

    def _rule_of(self, type: str, own: Schema, make: Callable[[], str]) -> str:
        """A rule by what it means, which may hold itself."""
        key = f"\n{type} {json.dumps(own)}"
        if key not in self._names:
            name = self._names[key] = f"{type}_{len(self._names)}"
            self._lines.append(f"{name}: {make()}")
        return self._names[key]

    def _text(self, own: Schema) -> str:
        if WITHOUT in own:
            return self._text_but(own[WITHOUT], own)
        bound = dict(_FORMATS.get(own.get("format", ""), {}))
        if "maxLength" in own and "maxLength" in bound:
            bound["maxLength"] = min(count(own, "maxLength", 0), bound["maxLength"])
        pattern = bound.pop("pattern", None)
        more = {"allOf": [{"type": "string", "pattern": pattern}]} if pattern else {}
        return self._leaf({"type": "string", **own, **bound, **more})

    def _text_but(self, taken: Sequence[str], own: Schema) -> str:
        """Any text but those, also where an escape could spell one of them."""
        if own.keys() & {"pattern", "format"}:
            raise NotUnderstood
        most = count(own, "maxLength", None)
        return self._any_but(taken, f"{{{count(own, 'minLength', 0)},{'' if most is None else most}}}")

    def _any_but(self, taken: Iterable[str], times: str) -> str:
        """A terminal: texts of so many characters."""
        taken = list(taken)
        plain = all(text.isprintable() for text in taken)
        characters = f"{_CHARACTER}|{_CONTROL}" if plain else _CHARACTER
        text = f'/"({characters}){times}"/'
        if taken:
            literals = (quoted(json.dumps(each, ensure_ascii=False)) for each in taken)
            text += f" & ~({' | '.join(literals)})"
        return self._terminal(text)

    def _number(self, type: str, own: Schema) -> str:
        integer = type == "integer"
        if not all(is_number(value) for value in own.values()):
            raise NotUnderstood
        if "multipleOf" in own:
            ends = {"minimum": -_MULTIPLES, "maximum": _MULTIPLES}
            return self._leaf({"type": type, **ends, **own})
        if not own:
            return self._terminal(f"/{ranges.INTEGER if integer else ranges.NUMBER}/")
        low = limit(own, "minimum", "exclusiveMinimum", max)
        high = limit(own, "maximum", "exclusiveMaximum", min)
        try:
            return self._terminal(ranges.within(low, high, integer=integer))
        except ValueError as error:
            raise NotUnderstood from error

    # --- arrays

    def _array(self, own: Schema, least: int) -> str:
        if DIFFERENT in own:
            return self._each_once(own[DIFFERENT], least, count(own, "maxItems", None))
        first, rest = own.get("prefixItems", []), own.get("items", True)
        if not isinstance(first, list):
            raise NotUnderstood
        most = count(own, "maxItems", None)
        if rest is False:
            most = len(first) if most is None else min(most, len(first))
        if most is not None and least > most:
            raise NotUnderstood
        first = first[:most]
        parts = [self._of(item) for item in first]
        inner = self._more_items(self._of(rest), len(parts), least, most) if most != len(parts) else ""
        for at in reversed(range(len(parts))):
            comma = "COMMA " if at else ""
            inner = f"{comma}{parts[at]} {inner}"
            if at and at >= least:
                inner = f"({inner})?"
        whole = f"ARRAY {inner} ARRAY_END"
        if most == 0:
            return "NO_ARRAY"
        return whole if least else f"(NO_ARRAY | {whole})"

    def _each_once(self, values: Sequence[Any], least: int, most: int | None) -> str:
        """An array of some of the values, in any order."""
        most = min(len(values), len(values) if most is None else most)
        if not 0 <= least <= most or not most:
            raise NotUnderstood
        items = [self._values([value]) for value in values]

        def behind(left: Sequence[str], taken: int) -> str:
            if taken == most:
                return ""
            more = self._rule(
                " | ".join(f"COMMA {item} {behind(rest, taken + 1)}" for item, rest in _picks(left))
            )
            return more if taken < least else f"({more})?"

        whole = self._either(f"ARRAY {item} {behind(rest, 1)} ARRAY_END" for item, rest in _picks(items))
        return whole if least else f"(NO_ARRAY | {whole})"

    def _more_items(self, item: str, before: int, least: int, most: int | None) -> str:
        """Those behind the first ones."""
        low, high = max(0, least - before), None if most is None else most - before
        if before:
            return _times(f"COMMA {item}", low, high)
        return _several(item, low, high)

    # --- objects

    def _object(self, own: Schema) -> str:
        properties, required = properties_of(own), required_of(own)
        others = own.get("additionalProperties", True)
        if any(properties.get(name, others) is False for name in required):
            raise NotUnderstood
        fields = {**properties, **{name: others for name in required if name not in properties}}
        items = [
            (f"{self._key(name)} {self._of(value)}", name in required)
            for name, value in fields.items()
            if value is not False
        ]
        low, high = room_for_others(own, len(required), len(items))
        free = None
        if others is not False and high != 0:
            free = f"{self._any_but(fields, f'{{0,{NAME}}}')} COLON {self._of(others)}"
        elif low:
            raise NotUnderstood
        return self._members(items, free, low, high)

    def _key(self, name: str) -> str:
        return f"{self._terminal(quoted(json.dumps(name, ensure_ascii=False)))} COLON"

    def _members(
        self, items: Sequence[tuple[str, bool]], free: str | None, low: int, high: int | None
    ) -> str:
        """An object's text: items in their order, each of which may be missing unless it is required, then
        others, `low` to `high` of them."""
        behind = _times(f"COMMA {free}", low, high) if free else ""
        first = _several(free, low, high) if free else ""
        needed = bool(free and low)
        for item, required in reversed(items):
            begun = f"{item} {behind}"
            first = begun if required or not first else f"({begun} | {first})"
            behind = self._rule(f"COMMA {begun}" if required else f"(COMMA {item})? {behind}")
            first = self._rule(first)
            needed = needed or required
        if not first:
            return "NO_OBJECT"
        whole = f"OBJECT {first} OBJECT_END"
        return whole if needed else f"(NO_OBJECT | {whole})"


def _picks(items: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Each item, and the others."""
    for at, item in enumerate(items):
        yield item, [*items[:at], *items[at + 1 :]]


def _times(body: str, low: int, high: int | None) -> str:
    """An expression repeated."""
    if high is None:
        return f"({body})*" if not low else f"({body}){{{low},}}"
    return f"({body}){{{low},{high}}}" if high > 0 else ""


def _several(body: str, low: int, high: int | None) -> str:
    """An expression once or more, with commas between."""
    return f"{body} {_times(f'COMMA {body}', max(0, low - 1), None if high is None else high - 1)}"
