"""Leaves out of a JSON schema what constrains nothing, before the schema is read.

A remark is a keyword that constrains nothing in any draft of the standard (`title`, `x-order`, `strict`), a
format that the standard does not define ("path", "password"), or the statement that a property's name is a
string. Formats that the standard defines are enforced, or refused.
"""

from __future__ import annotations

from typing import Any

from actors.tokenizer.schema_keys import KEYWORDS, Path, references, steps, within

_FORMATS = frozenset(
    {
        *("date", "date-time", "duration", "time"),
        *("email", "hostname", "idn-email", "idn-hostname", "ipv4", "ipv6"),
        *("iri", "iri-reference", "uri", "uri-reference", "uri-template", "uuid"),
        *("json-pointer", "relative-json-pointer", "regex"),
    }
)
"""Those of the standard."""

_DRAFTS = ("draft-04/", "draft-06/", "draft-07/", "draft/2019-09/", "draft/2020-12/")


def without_remarks(schema: Any) -> Any:
    """A schema with the same meaning. Its values (`const`, `enum`) stay as they are, and so does whatever a
    reference points to."""
    return _Reader(set(map(steps, references(schema)))).schema(schema, ())


class _Reader:
    """Goes through a schema, and knows which places are pointed to."""

    def __init__(self, targets: set[Path]) -> None:
        self._targets = targets
        self._ways = {path[:end] for path in targets for end in range(1, len(path) + 1)}

    def schema(self, schema: Any, path: Path) -> Any:
        """What a schema at a place says."""
        if not isinstance(schema, dict):
            return schema
        own = {key: value for key, value in schema.items() if key in KEYWORDS and not _is_remark(key, value)}
        found = within(own, lambda inner, way: self.schema(inner, (*path, *way)))
        others = {key: schema[key] for key in schema if key not in KEYWORDS and (*path, key) in self._ways}
        return {**found, **{key: self._elsewhere(value, (*path, key)) for key, value in others.items()}}

    def _elsewhere(self, value: Any, path: Path) -> Any:
        """Under somebody's own keyword, on the way to what is pointed to."""
        if path in self._targets:
            return self.schema(value, path)
        if not isinstance(value, dict):
            return value
        return {key: self._elsewhere(inner, (*path, key)) for key, inner in value.items()}


def _is_remark(key: str, value: Any) -> bool:
    match key:
        case "format":
            return isinstance(value, str) and value not in _FORMATS
        case "propertyNames":
            return value is True or value in ({}, {"type": "string"})
        case "$schema":
            return not (isinstance(value, str) and any(draft in value for draft in _DRAFTS))
        case _:
            return False
