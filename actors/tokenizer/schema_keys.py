"""What the keywords of a JSON schema say, as far as `schema` reads them."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from actors.tokenizer.ranges import Bound

Schema = dict[str, Any]

REMARKS = {
    "$anchor",
    "$comment",
    "$defs",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "definitions",
    "deprecated",
    "description",
    "discriminator",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
}

_RESTS = {"additionalProperties": "properties", "items": "prefixItems"}


class NotUnderstood(Exception):
    """A schema says something that is not read here."""


def pointed(root: Any, reference: Any) -> Any:
    """The schema that a reference within a document means."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise NotUnderstood
    found = root
    for part in unquote(reference).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or part not in found:
            raise NotUnderstood
        found = found[part]
    return found


def merged(schema: Schema, parts: Any) -> Schema:
    """One schema of several that speak of different things; those that are true say nothing."""
    whole = {key: value for key, value in schema.items() if key != "allOf"}
    parts = [part for part in parts if part is not True]
    if not all(isinstance(part, dict) for part in parts):
        raise NotUnderstood
    for rest, known in _RESTS.items():
        told = [part for part in (whole, *parts) if rest in part or known in part]
        if len(told) > 1 and any(rest in part for part in told):
            raise NotUnderstood  # the rest is meant beside the part's own alone
    for part in parts:
        for key, value in part.items():
            whole[key] = value if key in REMARKS or key not in whole else _both(key, whole[key], value)
    return whole


def _both(key: str, one: Any, other: Any) -> Any:
    """Two values of a key as one."""
    match key, one, other:
        case "properties", dict(), dict() if not one.keys() & other.keys():
            return {**one, **other}
        case "required", list(), list():
            return list(dict.fromkeys([*one, *other]))
        case _ if one == other:
            return one
        case _:
            raise NotUnderstood


def room_for_others(own: Schema, required: int, known: int) -> tuple[int, int | None]:
    """How many members an object may have beside the known ones: at least, at most."""
    least, most = count(own, "minProperties", 0), count(own, "maxProperties", None)
    if required == known:
        if most is not None and most < max(known, least):
            raise NotUnderstood
        return max(0, least - known), None if most is None else most - known
    if least > required or most is not None:
        raise NotUnderstood
    return 0, None


def count(own: Schema, key: str, default: Any) -> Any:
    """A whole number, or the default."""
    value = own.get(key, default)
    if value is not default and (not is_number(value) or value != int(value) or value < 0):
        raise NotUnderstood
    return value if value is None else int(value)


def limit(own: Schema, inclusive: str, exclusive: str, choose: Callable[..., Decimal]) -> Bound | None:
    """The narrower of two limits, the exclusive one where they are the same."""
    found = [(Decimal(repr(own[key])), key == inclusive) for key in (exclusive, inclusive) if key in own]
    if not found:
        return None
    end = choose(value for value, _ in found)
    return next(each for each in found if each[0] == end)


def is_number(value: Any) -> bool:
    """Whether it is one; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def fits(value: Any, types: Any) -> bool:
    """Whether a value is of one of the types."""
    if types is None:
        return True
    kinds = [types] if isinstance(types, str) else types
    match value:
        case None:
            return "null" in kinds
        case bool():
            return "boolean" in kinds
        case int() | float():
            return "number" in kinds or ("integer" in kinds and value == int(value))
        case str():
            return "string" in kinds
        case list():
            return "array" in kinds
        case _:
            return "object" in kinds
