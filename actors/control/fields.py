"""The fields of an administrator's request, checked."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar, get_args

import msgspec

from protocols.errors import VerbError
from runtime.admin import Request
from runtime.root import ORDER_SECONDS

E = TypeVar("E", bound=enum.StrEnum)
S = TypeVar("S", bound=msgspec.Struct)

LONGEST = 86400.0
"""Seconds that anybody may be asked to wait."""
LONGEST_LABEL = 128


def choice(request: Request, key: str, kind: type[E], default: E) -> E:
    """One of a few words."""
    value = request.get(key)
    if value is None:
        return default
    try:
        return kind(str(value))
    except ValueError as error:
        words = ", ".join(each.value for each in kind)
        raise VerbError("usage", f"{key} must be one of {words}.") from error


def number(request: Request, key: str, default: float, *, least: float = 0.0, most: float) -> float:
    """A number between `least` and `most`."""
    value = request.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise VerbError("usage", f"{key} must be a number from {least:.12g} to {most:.12g}.")
    return float(value)


def time_for(request: Request, default: float = ORDER_SECONDS) -> float:
    """Seconds that what is asked for may take."""
    return number(request, "timeout", default, most=LONGEST)


def flag(request: Request, key: str) -> bool:
    """Yes or no; no where nothing is said."""
    value = request.get(key)
    if value is not None and not isinstance(value, bool):
        raise VerbError("usage", f"{key} must be true or false.")
    return bool(value)


def typed(values: Mapping[str, object], kind: type[S]) -> S:
    """Several fields as a struct, or a sentence that names the one that is wrong."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`")
        choices = next((each.type for each in msgspec.structs.fields(kind) if each.name == name), None)
        kinds = [one for one in get_args(choices) if isinstance(one, type) and issubclass(one, enum.Enum)]
        words = [str(word.value) for one in kinds for word in one]
        sentence = f"must be one of {', '.join(words)}" if words else f"{what[:1].lower()}{what[1:]}"
        raise VerbError("usage", f"{name}: {sentence}.") from error


def label(request: Request, key: str) -> str:
    """A short text of printable characters; "" where nothing is said."""
    value = request.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or not value.isprintable() or len(value) > LONGEST_LABEL:
        raise VerbError("usage", f"{key} must be {LONGEST_LABEL} printable characters at most.")
    return value
