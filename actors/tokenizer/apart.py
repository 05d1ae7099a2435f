"""Whether no value fits both of two schemas, as far as that is easy to see."""

from __future__ import annotations

from typing import Any

from actors.tokenizer.schema_keys import (
    REMARKS,
    NotUnderstood,
    Schema,
    fits,
    is_number,
    member,
    pointed,
    required_of,
    same,
    types_of,
    values_of,
)

_DEPTH = 8
"""How deep it is looked for what tells two schemas apart."""

_ENDS = {
    "number": (("minimum", "maximum"),),
    "string": (("minLength", "maxLength"),),
    "array": (("minItems", "maxItems"),),
    "object": (("minProperties", "maxProperties"),),
}


def apart(one: Any, other: Any, root: Any, depth: int = _DEPTH) -> bool:
    """True: no value fits both. False: perhaps. root: the document in which references are."""
    if not depth:
        return False
    try:
        one, other = resolved(one, root), resolved(other, root)
        if one is False or other is False:
            return True
        if not (isinstance(one, dict) and isinstance(other, dict)):
            return False
        return (
            _by_part(one, other, root, depth)
            or _by_part(other, one, root, depth)
            or _by_values(one, other)
            or _by_type(one, other, root, depth)
        )
    except NotUnderstood:
        return False


def resolved(schema: Any, root: Any, *, alone: bool = False) -> Any:
    """What stands behind references, whatever is said beside them; alone: nothing may be said there. Raises
    NotUnderstood."""
    for _ in range(_DEPTH):
        if not (isinstance(schema, dict) and "$ref" in schema):
            return schema
        if alone and schema.keys() - REMARKS != {"$ref"}:
            raise NotUnderstood
        schema = pointed(root, schema["$ref"])
    raise NotUnderstood


def _by_part(one: Schema, other: Schema, root: Any, depth: int) -> bool:
    """All of the options of `one`, or any of its parts."""
    options = [one[key] for key in ("anyOf", "oneOf") if isinstance(one.get(key), list)]
    if any(all(apart(option, other, root, depth - 1) for option in each) for each in options):
        return True
    parts = one.get("allOf")
    return isinstance(parts, list) and any(apart(part, other, root, depth - 1) for part in parts)


def _by_values(one: Schema, other: Schema) -> bool:
    ones, others = values_of(one), values_of(other)
    if ones is not None and others is not None:
        return not any(same(value, each) for value in ones for each in others)
    told, types = (ones, types_of(other)) if others is None else (others, types_of(one))
    return told is not None and not any(fits(value, [*types]) for value in told)


def _by_type(one: Schema, other: Schema, root: Any, depth: int) -> bool:
    common = types_of(one) & types_of(other)
    return all(_apart_as(type, one, other, root, depth) for type in common)


def _apart_as(type: str, one: Schema, other: Schema, root: Any, depth: int) -> bool:
    """As values of one type."""
    for low, high in _ENDS.get("number" if type == "integer" else type, ()):
        if any(_below(a.get(high), b.get(low)) for a, b in ((one, other), (other, one))):
            return True
    if type != "object":
        return False
    names = [*required_of(one), *required_of(other)]
    return any(apart(member(one, name), member(other, name), root, depth - 1) for name in names)


def _below(high: Any, low: Any) -> bool:
    return is_number(high) and is_number(low) and high < low
