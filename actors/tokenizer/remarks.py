"""What a JSON schema says that asks nothing of a text: it is left out before anybody reads the schema.

A format that the standard does not define is a remark ("path", "password"), and so is that a property's name
is a string; the formats that it defines are kept to, or refused.
"""

from __future__ import annotations

from typing import Any

_FORMATS = frozenset(
    {
        *("date", "date-time", "duration", "time"),
        *("email", "hostname", "idn-email", "idn-hostname", "ipv4", "ipv6"),
        *("iri", "iri-reference", "uri", "uri-reference", "uri-template", "uuid"),
        *("json-pointer", "relative-json-pointer", "regex"),
    }
)
"""Those of the standard."""

_ONE = frozenset({"additionalProperties", "items", "propertyNames"})
_LIST = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})


def without_remarks(schema: Any) -> Any:
    """A schema that means the same. Values of its own (`const`, `enum`, `default`) stay as they are."""
    if not isinstance(schema, dict):
        return schema
    return {key: _inner(key, value) for key, value in schema.items() if not _is_remark(key, value)}


def _is_remark(key: str, value: Any) -> bool:
    match key:
        case "format":
            return isinstance(value, str) and value not in _FORMATS
        case "propertyNames":
            return value is True or value in ({}, {"type": "string"})
        case _:
            return False


def _inner(key: str, value: Any) -> Any:
    match value:
        case dict() if key in _NAMED:
            return {name: without_remarks(each) for name, each in value.items()}
        case dict() if key in _ONE:
            return without_remarks(value)
        case list() if key in _LIST:
            return [without_remarks(each) for each in value]
        case _:
            return value
