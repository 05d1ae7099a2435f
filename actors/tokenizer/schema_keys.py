"""What the keywords of a JSON schema say, as far as `schema` reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from actors.tokenizer.ranges import Bound

Schema = dict[str, Any]

REMARKS = {"$anchor", "$defs", "$schema", "definitions"}
"""What asks nothing, of what `remarks` leaves in a schema."""

WITHOUT, DIFFERENT, SEVERAL = "x-without", "x-different", "x-several"
"""Keywords of our own: texts that a string is none of; the values of which an array has each once at most;
how many members an object has at least, of which no grammar can say that their names differ."""

_ONE = frozenset(
    "additionalItems additionalProperties contains else if items not propertyNames then unevaluatedItems"
    " unevaluatedProperties".split()
)
_LIST = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords that hold a schema, a list of them, or schemas by their names."""

KEYWORDS = (
    _ONE
    | _LIST
    | _NAMED
    | frozenset(
        "$anchor $dynamicAnchor $dynamicRef $id $recursiveRef $ref $schema const dependencies"
        " dependentRequired discriminator enum exclusiveMaximum exclusiveMinimum format id maxContains"
        " maximum maxItems maxLength maxProperties minContains minimum minItems minLength minProperties"
        " multipleOf nullable pattern required type uniqueItems".split()
    )
)
"""What the drafts of the standard ask something by, and two words of OpenAPI's; the rest asks nothing."""

Path = tuple[str, ...]
"""A place within a schema."""


class NotUnderstood(Exception):
    """A schema says something that is not read here."""


def within(schema: Schema, change: Callable[[Any, Path], Any]) -> Schema:
    """A schema in which each of the schemas that it holds at once, and its place there, has been changed."""

    def changed(key: str, value: Any) -> Any:
        match value:
            case dict() if key in _NAMED:
                return {name: change(each, (key, name)) for name, each in value.items()}
            case dict() | bool() if key in _ONE:
                return change(value, (key,))
            case list() if key in _LIST:
                return [change(each, (key, str(number))) for number, each in enumerate(value)]
            case _:
                return value

    return {key: changed(key, value) for key, value in schema.items()}


def references(schema: Any) -> Iterator[str]:
    """Every reference in a document, and what looks like one."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def steps(reference: str) -> Path:
    """The place within a document that a reference means; that of the document where it means none."""
    if not reference.startswith("#/"):
        return ()
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in unquote(reference[2:]).split("/"))


def pointed(root: Any, reference: Any) -> Any:
    """The schema that a reference within a document means."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise NotUnderstood
    found = root
    for part in steps(reference):
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
    told = [part for part in (whole, *parts) if "items" in part or "prefixItems" in part]
    if len(told) > 1 and any("items" in part for part in told):
        raise NotUnderstood  # the rest is meant behind the part's own items alone
    named = [properties_of(part).keys() for part in (whole, *parts)]
    for part, names in zip((whole, *parts), named, strict=True):
        if "additionalProperties" in part and not all(names >= others for others in named):
            raise NotUnderstood  # the rest is meant beside the part's own properties alone
    for part in parts:
        for key, value in part.items():
            whole[key] = value if key in REMARKS or key not in whole else _both(key, whole[key], value)
    return whole


def _both(key: str, one: Any, other: Any) -> Any:
    """Two values of a key as one."""
    match key, one, other:
        case "properties", dict(), dict():
            both = {name: _narrower(one[name], other[name]) for name in one.keys() & other.keys()}
            return {**one, **other, **both}
        case "required", list(), list():
            return list(dict.fromkeys([*one, *other]))
        case _ if same(one, other):
            return one
        case _:
            raise NotUnderstood


def _narrower(one: Any, other: Any) -> Any:
    """One of two schemas, where it is both."""
    if one is False or other is False:
        return False
    if one is True or same(one, other):
        return other
    if other is True:
        return one
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


_TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}


def types_of(schema: Schema) -> set[str]:
    """The types that a schema names, or all; what is a `number` may be an `integer`."""
    named = schema.get("type", [*_TYPES])
    found = {named} if isinstance(named, str) else named
    if not isinstance(found, set | list) or not all(isinstance(each, str) for each in found):
        raise NotUnderstood
    types = {*found, "integer"} if "number" in found else {*found}
    if not types <= _TYPES:
        raise NotUnderstood
    return types


def values_of(schema: Schema) -> list[Any] | None:
    """The values that `const`, `enum` and `type` leave, None without either of the first two."""
    listed = [[schema["const"]]] if "const" in schema else []
    if "enum" in schema:
        listed.append(schema["enum"])
    if not listed or not all(isinstance(values, list) for values in listed):
        return None
    first, *others = listed
    return [
        value
        for value in first
        if fits(value, [*types_of(schema)])
        and all(any(same(value, each) for each in values) for values in others)
    ]


def properties_of(schema: Schema) -> Schema:
    """The schemas of an object's members, by their names."""
    found = schema.get("properties", {})
    if not isinstance(found, dict):
        raise NotUnderstood
    return found


def required_of(schema: Schema) -> list[str]:
    """The names of members that must be there, each once."""
    found = schema.get("required", [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise NotUnderstood
    return list(dict.fromkeys(found))


def member(schema: Schema, name: str) -> Any:
    """What an object's member of that name has to be, or something wider."""
    known = properties_of(schema)
    if name in known:
        return known[name]
    return True if "patternProperties" in schema else schema.get("additionalProperties", True)


def same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are equal: 1 and 1.0 are, 1 and true are not."""
    match one, other:
        case (bool(), _) | (_, bool()):
            return one is other
        case list(), list():
            return len(one) == len(other) and all(map(same, one, other))
        case dict(), dict():
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        case _:
            return bool(one == other)


def distinct(values: list[Any]) -> list[Any]:
    """Each value once."""
    found: list[Any] = []
    for value in values:
        if not any(same(value, each) for each in found):
            found.append(value)
    return found
