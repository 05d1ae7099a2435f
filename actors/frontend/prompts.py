"""Conversations to prompts: the messages, tools and arguments that the chat template will see."""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import Any

import msgspec

from protocols.errors import UserError
from protocols.openai.body import check_depth
from protocols.openai.chat import ChatMessage, Part, Tool, ToolCall
from protocols.request import ChatPrompt, Prompt, TextPrompt, TokenPrompt

Message = dict[str, Any]
"""One message as the template sees it."""

MAX_PROMPTS = 1024
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_TEXT_PARTS = {"text", "input_text", "output_text", "refusal"}
_RESERVED = {"messages", "conversation", "tools", "documents", "tokenize", "chat_template", "return_dict"}


def template_message(message: ChatMessage, where: str) -> Message:
    """A message of a chat request; `where` names it in refusals."""
    if message.audio is not None:
        raise UserError(f"{where}.audio is not supported.", param=f"{where}.audio", code="unsupported")
    shown: Message = {
        "role": role(message.role, where),
        "content": text_of(message.content, f"{where}.content") or message.refusal or "",
    }
    if message.name is not None:
        shown["name"] = message.name
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    for thought in (message.reasoning_content, message.reasoning):
        if isinstance(thought, str):
            shown.setdefault("reasoning_content", thought)
    calls = [_tool_call(call, f"{where}.tool_calls") for call in message.tool_calls or ()]
    if (call := message.function_call) is not None:
        calls.append(function_call(None, call.name, call.arguments, f"{where}.function_call"))
    if calls:
        shown["tool_calls"] = calls
    return shown


def role(name: str, where: str) -> str:
    """A role as templates know it."""
    known = _ROLES.get(name)
    if known is None:
        raise UserError(f"{where}.role must be one of {', '.join(_ROLES)}.", param=f"{where}.role")
    return known


def text_of(content: str | list[Part] | None, where: str) -> str:
    """The text of a content, its parts on lines of their own."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def function_call(
    call_id: str | None, name: str, arguments: str | dict[str, Any] | None, where: str
) -> Message:
    """A call of an earlier turn, its arguments as a value: templates write them as JSON themselves."""
    return {
        "id": call_id or "",
        "type": "function",
        "function": {"name": name, "arguments": _arguments(arguments, where)},
    }


def chat_prompt(
    messages: Sequence[Message],
    *,
    tools: list[Tool] | None = None,
    arguments: dict[str, Any] | None = None,
    continue_final: bool = False,
    shorten: bool = False,
) -> ChatPrompt:
    """Messages as they travel; raises UserError for what no template may be given."""
    if not messages:
        raise UserError("messages must not be empty.", param="messages")
    if continue_final and messages[-1]["role"] != "assistant":
        raise UserError(
            "continue_final_message needs a last message of the assistant.", param="continue_final_message"
        )
    arguments = arguments or {}
    taken = _RESERVED & set(arguments)
    if taken:
        raise UserError(f"chat_template_kwargs may not set {min(taken)}.", param="chat_template_kwargs")
    check_depth(arguments, "chat_template_kwargs")
    return ChatPrompt(
        messages=msgspec.json.encode(messages),
        tools=msgspec.json.encode(_tools(tools)),
        template_kwargs=msgspec.json.encode(arguments),
        continue_final=continue_final,
        shorten=shorten,
    )


def plain_prompts(
    prompt: str | list[str | int | list[int]], vocab_size: int, param: str = "prompt"
) -> tuple[Prompt, ...]:
    """The prompts of a request: one text, one list of ids, or a list of either; `param` names the field."""
    if isinstance(prompt, str):
        return (_text_prompt(prompt, param),)
    if not prompt:
        raise UserError(f"{param} must not be empty.", param=param)
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return (token_prompt(ids, vocab_size, param),)
    if ids:
        raise UserError(f"{param} mixes token ids with other things.", param=param)
    if len(prompt) > MAX_PROMPTS:
        raise UserError(f"{param} may hold at most {MAX_PROMPTS} prompts, not {len(prompt)}.", param=param)
    return tuple(
        token_prompt(item, vocab_size, param) if isinstance(item, list) else _text_prompt(str(item), param)
        for item in prompt
    )


def token_prompt(ids: list[int], vocab_size: int, param: str) -> TokenPrompt:
    """Ids within the vocabulary, as they travel."""
    if not ids:
        raise UserError(f"{param} must not be empty.", param=param)
    return TokenPrompt(token_bytes(ids, vocab_size, param))


def token_bytes(ids: list[int], vocab_size: int, param: str) -> bytes:
    """Ids within the vocabulary, as int32. Raises UserError."""
    if min(ids, default=0) < 0 or max(ids, default=0) >= vocab_size:
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        raise UserError(
            f"{param} names token {wrong}, but the vocabulary has {vocab_size} tokens.", param=param
        )
    return array.array("i", ids).tobytes()


def _text_prompt(text: str, param: str) -> TextPrompt:
    if not text:
        raise UserError(f"{param} must not be empty.", param=param)
    return TextPrompt(text)


def _part(part: Part, where: str) -> str:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in _TEXT_PARTS:
        raise UserError(
            f"{where} is of type '{part.type[:50]}', but this model takes text only.",
            param=where,
            code="unsupported",
        )
    if text is None:
        raise UserError(f"{where} has no text.", param=where)
    return text


def _tool_call(call: ToolCall, where: str) -> Message:
    return function_call(call.id, call.function.name, call.function.arguments, where)


def _arguments(arguments: str | dict[str, Any] | None, where: str) -> Any:
    value: Any = arguments if arguments is not None else {}
    if isinstance(arguments, str):
        try:
            value = msgspec.json.decode(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            value = arguments
    check_depth(value, where)
    return value


def _tools(tools: list[Tool] | None) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    shown: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        if tool.type != "function" or tool.function is None:
            raise UserError(f"tools[{i}] must be a function.", param=f"tools[{i}].type", code="unsupported")
        check_depth(tool.function.parameters, f"tools[{i}].function.parameters")
        function = {k: v for k, v in msgspec.structs.asdict(tool.function).items() if v is not None}
        shown.append({"type": "function", "function": function})
    return shown
