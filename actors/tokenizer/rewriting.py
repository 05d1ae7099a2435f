"""JSON schemas in fewer keywords: those from which grammars are made.

What is rewritten means the same, or less: where a text could fit two parts of a `oneOf`, it is not made, so
that whatever is made fits exactly one. What cannot be rewritten stays, and is refused by its name.

    nullable          one more type
    items, additionalItems of earlier drafts, and exclusive limits that are true or false: as they are now
    not               types, values and names that are left out; `x-without` of a text
    propertyNames     the properties of these names, or patternProperties
    unevaluated…      additionalProperties, where no other part speaks of properties
    minProperties     `x-several` where names could be the same, of which JSON keeps one
    uniqueItems       `x-different` of an array that has few values to choose from
    oneOf             anyOf, once its parts exclude each other
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from actors.tokenizer.apart import apart, resolved
from actors.tokenizer.schema_keys import (
    DIFFERENT,
    SEVERAL,
    WITHOUT,
    NotUnderstood,
    Schema,
    count,
    distinct,
    fits,
    member,
    properties_of,
    required_of,
    same,
    types_of,
    values_of,
    within,
)

MAX_DIFFERENT = 8
"""Values of which an array may have each once: all their orders are its texts."""

_VALUED = frozenset({"const", "enum", "type"})
_COMBINED = frozenset({"$ref", "allOf", "anyOf", "oneOf"})

_APPLIED_IN_PLACE = _COMBINED | {"dependencies", "dependentSchemas", "if", "not"}

_Rule = Callable[[Schema, Any], Schema]
"""From a schema, and the document that its references are in, to what it means. Raises NotUnderstood."""


def rewritten(schema: Any) -> Any:
    """The whole document; who tells the parts of a `oneOf` apart reads what they mean."""
    for rules in ((_limits, _items, _nullable, _not, _unevaluated, _names, _several, _unique), (_one_of,)):
        schema = _everywhere(schema, rules, schema)
    return schema


def without_ours(schema: Any) -> Any:
    """The schema without keywords of our own, which is wider."""
    if not isinstance(schema, dict):
        return schema
    return within(_less(schema, WITHOUT, DIFFERENT, SEVERAL), lambda inner, _: without_ours(inner))


def _everywhere(schema: Any, rules: tuple[_Rule, ...], root: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    found = within(schema, lambda inner, _: _everywhere(inner, rules, root))
    for rule in rules:
        try:
            found = rule(found, root)
        except NotUnderstood:
            continue
    return found


def _less(schema: Schema, *keys: str) -> Schema:
    return {key: value for key, value in schema.items() if key not in keys}


# --- earlier drafts, and OpenAPI


def _limits(schema: Schema, _: Any) -> Schema:
    for inclusive, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        match schema.get(exclusive):
            case True if inclusive in schema:
                schema = {**_less(schema, inclusive), exclusive: schema[inclusive]}
            case bool():
                schema = _less(schema, exclusive)
    return schema


def _items(schema: Schema, _: Any) -> Schema:
    rest = _less(schema, "items", "additionalItems")
    match schema.get("items"):
        case list(first) if "prefixItems" not in schema:
            return {**rest, "prefixItems": first, "items": schema.get("additionalItems", True)}
        case _:
            return _less(schema, "additionalItems")


def _nullable(schema: Schema, _: Any) -> Schema:
    """As OpenAPI has it: without a type it says nothing, and an enum has null itself."""
    rest = _less(schema, "nullable")
    if schema.get("nullable") is not True or "type" not in schema:
        return rest
    return {**rest, "type": _listed(types_of(schema) | {"null"})}


# --- not


def _not(schema: Schema, root: Any) -> Schema:
    return _but(_less(schema, "not"), schema["not"], root) if "not" in schema else schema


def _but(schema: Schema, excluded: Any, root: Any) -> Schema:
    """A schema without what fits another one."""
    match resolved(excluded, root, alone=True):
        case False:
            return schema
        case {"type": _, **more} as other if not more:
            return {**schema, "type": _listed(types_of(schema) - types_of(other))}
        case {"required": [str(name)], **more} as other if more.keys() <= {"type"}:
            if not {"object"} <= types_of(schema) & types_of(other) or name in required_of(schema):
                raise NotUnderstood
            return {**schema, "type": "object", "properties": {**properties_of(schema), name: False}}
        case {"anyOf": list(options), **more} if not more:
            for option in options:
                schema = _but(schema, option, root)
            return schema
        case dict() as other if (values := values_of(other)) is not None and other.keys() <= _VALUED:
            return _without_values(schema, values)
        case _:
            raise NotUnderstood


def _without_values(schema: Schema, values: list[Any]) -> Schema:
    own = values_of(schema)
    if own is not None:
        left = [value for value in own if not any(same(value, each) for each in values)]
        if not left:
            raise NotUnderstood
        return {**_less(schema, "const"), "enum": left}
    if None in values:
        schema = {**schema, "type": _listed(types_of(schema) - {"null"})}
    met = [value for value in values if value is not None and fits(value, [*types_of(schema)])]
    texts = [value for value in met if isinstance(value, str)]
    if len(texts) < len(met) or (texts and _COMBINED & schema.keys()):
        raise NotUnderstood
    return {**schema, WITHOUT: [*schema.get(WITHOUT, ()), *texts]} if texts else schema


def _listed(types: set[str]) -> list[str]:
    """Types as a schema has them; `number` without `integer` is none."""
    if not types or ("number" in types and "integer" not in types):
        raise NotUnderstood
    return sorted(types - {"integer"} if "number" in types else types)


# --- objects and arrays


def _unevaluated(schema: Schema, _: Any) -> Schema:
    if "unevaluatedProperties" not in schema or _APPLIED_IN_PLACE & schema.keys():
        return schema
    others = schema["unevaluatedProperties"]
    return {"additionalProperties": others, **_less(schema, "unevaluatedProperties")}


def _names(schema: Schema, root: Any) -> Schema:
    names = resolved(schema.get("propertyNames", True), root, alone=True)
    if not isinstance(names, dict) or "patternProperties" in schema:
        return schema
    rest, properties = _less(schema, "propertyNames"), properties_of(schema)
    values = values_of(names)
    if values is not None and names.keys() <= _VALUED:
        known = {name: member(schema, name) for name in values if isinstance(name, str)}
        refused = {name: False for name in properties if name not in known}
        return {**rest, "properties": {**known, **refused}, "additionalProperties": False}
    if properties or required_of(schema):
        raise NotUnderstood
    others = schema.get("additionalProperties", True)
    return {**rest, "patternProperties": {_pattern(names): others}, "additionalProperties": False}


def _pattern(names: Schema) -> str:
    """That of a name."""
    told = _less(names, "type")
    if "string" not in types_of(names):
        raise NotUnderstood
    if told.keys() == {"pattern"} and isinstance(told["pattern"], str):
        return str(told["pattern"])
    if not told.keys() <= {"minLength", "maxLength"}:
        raise NotUnderstood
    most = count(told, "maxLength", None)
    return f"^(?s:.){{{count(told, 'minLength', 0)},{'' if most is None else most}}}$"


def _several(schema: Schema, _: Any) -> Schema:
    """Of two members whose names are open, both may have the same."""
    least, required = count(schema, "minProperties", 0), len(required_of(schema))
    patterns = "patternProperties" in schema
    closed = schema.get("additionalProperties", True) is False and not patterns
    if closed or "object" not in types_of(schema) or least <= max(1, required + (not patterns)):
        return schema
    return {**schema, SEVERAL: least}


def _unique(schema: Schema, root: Any) -> Schema:
    rest = _less(schema, "uniqueItems")
    if not schema.get("uniqueItems") or schema.get("maxItems", 2) in (0, 1):
        return rest
    values = distinct(_choices(schema.get("items", True), root))
    if "prefixItems" in schema or len(values) > MAX_DIFFERENT:
        raise NotUnderstood
    return {**rest, DIFFERENT: values}


def _choices(schema: Any, root: Any) -> list[Any]:
    """All values that fit a schema."""
    match resolved(schema, root, alone=True):
        case {"type": "boolean", **more} if not more:
            return [True, False]
        case {"type": "null", **more} if not more:
            return [None]
        case {"anyOf": list(options), **more} if not more:
            return [value for option in options for value in _choices(option, root)]
        case dict() as found if (values := values_of(found)) is not None and found.keys() <= _VALUED:
            return values
        case _:
            raise NotUnderstood


# --- oneOf


def _one_of(schema: Schema, root: Any) -> Schema:
    rest = _less(schema, "oneOf", "discriminator")
    options = schema.get("oneOf")
    if not isinstance(options, list) or "anyOf" in schema:
        return _less(schema, "discriminator")
    options = [_typed(option, schema) for option in options]
    more: list[Schema] = [{} for _ in options]
    match schema.get("discriminator"):
        case {"propertyName": str(name)}:
            more = [_discriminated(option, name, root) for option in options]
        case _:
            pass
    _exclude(options, more, root)
    together = zip(options, more, strict=True)
    return {
        **rest,
        "anyOf": [{"allOf": [option, beside]} if beside else option for option, beside in together],
    }


def _typed(option: Any, schema: Schema) -> Any:
    """An option with the type that stands beside all of them."""
    if not isinstance(option, dict) or "$ref" in option or "type" not in schema:
        return option
    return {"type": schema["type"], **option}


def _discriminated(option: Any, name: str, root: Any) -> Schema:
    """What makes an option's discriminator one that may not be missing."""
    found = resolved(option, root)
    if not isinstance(found, dict) or name not in properties_of(found) or name in required_of(found):
        return {}
    return {"required": [name]}


def _exclude(options: list[Any], more: list[Schema], root: Any) -> None:
    """See to it that no text fits two of the options, each with what is asked more of it: where one could,
    each leaves out a name that the other requires."""
    plain = [resolved(option, root) for option in options]
    meant = [_both(*pair) for pair in zip(plain, more, strict=True)]
    for i, j in itertools.combinations(range(len(options)), 2):
        if not apart(meant[i], meant[j], root):
            for at, other in ((i, j), (j, i)):
                left_out = {_own_name(plain[other], plain[at]): False}
                more[at]["properties"] = {**properties_of(more[at]), **left_out}


def _both(option: Any, beside: Schema) -> Any:
    """An option that requires more."""
    return {**option, "required": [*required_of(option), *required_of(beside)]} if beside else option


def _own_name(one: Any, other: Any) -> str:
    """A name that one requires and the other does not, at best one that the other does not know."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        raise NotUnderstood
    names = [name for name in required_of(one) if name not in required_of(other)]
    if not names or types_of(one) & types_of(other) != {"object"}:
        raise NotUnderstood
    return min(names, key=lambda name: name in properties_of(other))
