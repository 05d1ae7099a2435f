"""References in a JSON schema that lead back to themselves.

A schema "a" that is "a reference to a, or something else" means the same without that reference. But a parser
then reads a text in as many ways as there are such loops, and takes longer the more of them cross.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actors.tokenizer.schema_keys import NotUnderstood, pointed, references


def circular(schema: Any) -> str:
    """A reference that leads back to itself with no keyword of its own in between, "" where there is none."""
    done: set[str] = set()
    for reference in references(schema):
        if found := _round(schema, reference, done):
            return found
    return ""


def _round(schema: Any, start: str, done: set[str]) -> str:
    """The first reference that a walk from `start` meets twice. done: those from which there is no loop."""
    way = {} if start in done else {start: _meant(schema, start)}
    while way:
        last = next(reversed(way))
        following = next(way[last], None)
        if following in way:
            return last
        if following is None:
            done.add(last)
            del way[last]
        elif following not in done:
            way[following] = _meant(schema, following)
    return ""


def _meant(schema: Any, reference: str) -> Iterator[str]:
    """The references that a reference leads to directly."""
    try:
        waiting = [pointed(schema, reference)]
    except NotUnderstood:
        return
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            options = (part.get(key) for key in ("anyOf", "oneOf", "allOf"))
            waiting += (each for option in options if isinstance(option, list) for each in option)
