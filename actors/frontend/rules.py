"""What a client requires of the text itself, from the many fields that say so (`response_format`, vLLM's,
SGLang's), as `Rules`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from protocols import structural_tags
from protocols.errors import UserError
from protocols.grammar import MAX_PATTERN, MAX_SOURCE, Rules, Shape, Syntax, ToolRule
from protocols.openai.body import check_depth
from protocols.openai.chat import Tool
from protocols.openai.generation import GenerationFields
from protocols.structural_tags import Format

_Candidate = tuple[str, Syntax, Any]
"""The client's name of a field, and what it asks for."""

_FIELDS = {
    "guided_json": Syntax.JSON,
    "guided_regex": Syntax.REGEX,
    "guided_choice": Syntax.CHOICE,
    "guided_grammar": Syntax.GRAMMAR,
    "json_schema": Syntax.JSON,
    "regex": Syntax.REGEX,
    "ebnf": Syntax.GRAMMAR,
    "structural_tag": Syntax.TAGS,
}
_ANY_OBJECT = {"type": "object"}
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def rules_of(
    request: GenerationFields,
    format: Any = None,
    param: str = "response_format",
    *,
    tools: Sequence[Tool] | None = None,
    choice: Any = None,
    parallel: bool | None = None,
) -> Rules:
    """All that a request asks. format, param: the endpoint's own field for a shape, and its name; the rest as
    chat has it. Raises UserError."""
    shape = _shape([*_shared(request), *_of_format(format, param)])
    names = [name_of(tool, f"tools[{i}]") for i, tool in enumerate(tools or ())]
    chosen = _chosen(choice, names)
    found = [tool for tool, name in zip(tools or (), names, strict=True) if name in chosen.names]
    fewer = len(found) < len(names)
    enforced = chosen.forced or fewer or parallel is False or any(_strict(tool) for tool in found)
    if not (found and enforced):
        return Rules(shape)
    rules = tuple(_tool_rule(tool, forced=chosen.forced) for tool in found)
    if sum(len(rule.parameters) for rule in rules) > MAX_SOURCE:
        raise UserError(f"The schemas of tools may take {MAX_SOURCE} bytes at most.", param="tools")
    return Rules(shape, rules, chosen.forced, parallel is not False)


def name_of(tool: Tool, where: str) -> str:
    """The function's name; raises UserError for what is no function, or has no proper name."""
    if tool.type != "function" or tool.function is None:
        raise UserError(f"{where} must be a function.", param=f"{where}.type", code="unsupported")
    if not _NAME.fullmatch(tool.function.name):
        raise UserError(
            f"{where}: a function's name has 1 to 128 letters, digits, '_', '-', '.' or ':'.",
            param=f"{where}.function.name",
        )
    return tool.function.name


def _shared(request: GenerationFields) -> Iterator[_Candidate]:
    for name, syntax in _FIELDS.items():
        value = getattr(request, name)
        if value is not None:
            yield name, syntax, value
    options = request.structured_outputs
    if options is None:
        return
    if not isinstance(options, dict):
        raise UserError("structured_outputs must be an object.", param="structured_outputs")
    for name, value in options.items():
        param = f"structured_outputs.{name[:50]}"
        match name:
            case _ if value is None:
                pass
            case "json_object" if value is False:
                pass
            case "json_object":
                yield param, Syntax.JSON, _ANY_OBJECT
            case "json" | "regex" | "choice" | "grammar" | "structural_tag":
                yield param, Syntax(name), value
            case _:
                raise UserError(f"{param} is not supported.", param=param, code="unsupported")


def _of_format(format: Any, param: str) -> Iterator[_Candidate]:
    """`response_format` of chat and completions, `text.format` of responses, whose schema lies one level
    higher."""
    match format:
        case None | {"type": "text"}:
            pass
        case {"type": "json_object"}:
            yield param, Syntax.JSON, _ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            yield f"{param}.json_schema.schema", Syntax.JSON, schema
        case {"type": "json_schema", "schema": schema}:
            yield f"{param}.schema", Syntax.JSON, schema
        case {"type": "structural_tag"}:
            yield param, Syntax.TAGS, format
        case {"type": "json_schema"}:
            raise UserError(f"{param} has no schema.", param=param, code="missing_required_parameter")
        case _:
            raise UserError(
                f"{param} may be of type 'text', 'json_object', 'json_schema' or 'structural_tag'.",
                param=param,
                code="unsupported",
            )


def _shape(candidates: list[_Candidate]) -> Shape | None:
    if len(candidates) > 1:
        names = " and ".join(param for param, _, _ in candidates)
        raise UserError(f"{names} exclude each other.", param=candidates[1][0])
    return _checked(*candidates[0]) if candidates else None


def _checked(param: str, syntax: Syntax, value: Any) -> Shape:
    match syntax:
        case Syntax.JSON:
            source = _encoded(_schema(value, param))
        case Syntax.TAGS:
            source = _encoded(_structural_tag(value, param))
        case Syntax.CHOICE:
            if not (
                isinstance(value, list) and value and all(isinstance(text, str) and text for text in value)
            ):
                raise UserError(f"{param} must be a list of texts, none of them empty.", param=param)
            source = _encoded(value)
        case Syntax.REGEX | Syntax.GRAMMAR:
            if not isinstance(value, str) or not value:
                raise UserError(f"{param} must be a text.", param=param)
            source = value
    limit = MAX_PATTERN if syntax in (Syntax.REGEX, Syntax.GRAMMAR) else MAX_SOURCE
    if len(source.encode("utf-8", "replace")) > limit:
        raise UserError(f"{param} may take {limit} bytes at most.", param=param)
    return Shape(syntax, source, param)


def _schema(value: Any, param: str) -> Any:
    """A JSON schema, given as such or as its text."""
    value = _decoded(value, param)
    if not isinstance(value, dict | bool):
        raise UserError(f"{param} must be a JSON schema: an object.", param=param)
    return value


def _structural_tag(value: Any, param: str) -> Format:
    """A structural tag, given as such or as its text."""
    value = _decoded(value, param)
    if not isinstance(value, dict):
        raise UserError(f"{param} must be an object.", param=param)
    return structural_tags.read(value, param)


def _decoded(value: Any, param: str) -> Any:
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{param} is not valid JSON.", param=param) from error
    check_depth(value, param)
    return value


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()


class _Chosen(NamedTuple):
    """The functions that may be called, and whether one of them must be."""

    names: list[str]
    forced: bool


def _chosen(choice: Any, names: list[str]) -> _Chosen:
    match choice:
        case None | "auto":
            return _Chosen(names, forced=False)
        case "none":
            return _Chosen([], forced=False)
        case "required":
            named, forced = names, True
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            named, forced = [name], True
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}} | {
            "type": "allowed_tools",
            "mode": mode,
            "tools": list(tools),
        } if mode in ("auto", "required"):
            named, forced = [_allowed(tool) for tool in tools], mode == "required"
        case _:
            raise UserError(
                "tool_choice may be 'auto', 'none', 'required', name a function, or be of type "
                "'allowed_tools', with tools and a mode, 'auto' or 'required'.",
                param="tool_choice",
                code="unsupported",
            )
    if not named or not set(named) <= set(names):
        raise UserError("tool_choice asks for a function that is not in tools.", param="tool_choice")
    return _Chosen(named, forced)


def _allowed(tool: Any) -> str:
    """The name of a tool in a list of allowed ones, as chat or responses have it."""
    match tool:
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return name
        case _:
            raise UserError("allowed_tools may hold functions by their names.", param="tool_choice")


def _strict(tool: Tool) -> bool:
    return tool.function is not None and bool(tool.function.strict)


def _tool_rule(tool: Tool, *, forced: bool) -> ToolRule:
    """Arguments are held to the schema where the call is forced, or the function is strict."""
    assert tool.function is not None
    if tool.function.parameters is None or not (forced or tool.function.strict):
        return ToolRule(tool.function.name)
    return ToolRule(tool.function.name, _encoded(tool.function.parameters))
