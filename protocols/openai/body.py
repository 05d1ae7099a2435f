"""Reads a JSON body against a type, strictly, and words what is wrong with it for its author.

Refused with a 400: malformed JSON, invalid UTF-8, lone surrogates, NaN and infinities, duplicate
names, absurd nesting, missing fields and wrong types. Unknown fields are ignored, as OpenAI does.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec

from protocols.errors import ErrorBody, UserError

T = TypeVar("T")

MAX_DEPTH = 64
"""Nesting of free-form values (tool schemas, template arguments, metadata) at most."""

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`$")


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inner object of OpenAI's error document."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorDocument(msgspec.Struct, frozen=True):
    """OpenAI's error document."""

    error: ErrorDetail


def detail(body: ErrorBody) -> ErrorDetail:
    """What a refusal says."""
    return ErrorDetail(body.message, body.type, body.param, body.code)


def error_document(body: ErrorBody) -> bytes:
    """The JSON of a refusal."""
    return msgspec.json.encode(ErrorDocument(detail(body)))


def read_body(decoder: msgspec.json.Decoder[T], body: bytes | str) -> T:
    """`body` as the decoder's type; raises UserError with status 400 and the field's name."""
    try:
        value = decoder.decode(body)
        _scan(body if isinstance(body, str) else body.decode())
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from error
    except UnicodeDecodeError as error:
        raise UserError("The request body is not valid UTF-8.", code="invalid_json") from error
    except RecursionError as error:
        raise UserError("The request body is nested too deeply.", code="invalid_json") from error
    except ValueError as error:
        raise UserError(f"The request body is not valid JSON: {error}.", code="invalid_json") from error
    return value


def check_depth(value: Any, param: str, limit: int = MAX_DEPTH) -> None:
    """Refuse free-form JSON that nests deeper than `limit`; later readers may recurse over it."""
    level = [value]
    for _ in range(limit):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise UserError(f"{param} is nested more than {limit} levels deep.", param=param)


def _children(value: Any) -> list[Any]:
    match value:
        case dict():
            return list(value.values())
        case list():
            return value
        case _:
            return []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))[:100]  # type: ignore[func-returns-value]
        message = f"The request body names {twice!r} twice in one object."
        raise UserError(message, code="invalid_json", param=twice)
    return names


def _no_constant(name: str) -> NoReturn:
    raise UserError(f"The request body is not valid JSON: {name} is not a JSON number.", code="invalid_json")


_scan = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode
"""Raises what `json.loads` does, and UserError, for what msgspec lets through."""


def _field_error(text: str) -> UserError:
    match = _PLACE.match(text)
    assert match is not None, "the pattern matches any text"
    what, path = match["what"], match["path"] or ""
    missing = _MISSING.match(what)
    if missing is not None:
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return UserError(
            f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
        )
    sentence = what.replace("`", "").replace(" | null", "")
    where = f"Invalid value for '{path}': " if path else "Invalid request body: "
    return UserError(f"{where}{sentence[:1].lower()}{sentence[1:]}.", param=path or None, code="invalid_type")
