"""The chat template: messages in, the prompt's text out, as transformers' `apply_chat_template` renders it.

Beyond what transformers does, messages are made to fit the template as OpenAI's API needs it: a content
that is a list of text parts becomes one string where the template only knows strings, a string becomes
a list where it only knows lists, and the arguments of tool calls, JSON text on the wire, become objects.
What a template knows is found out by rendering a probe, once for each role.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import jinja2.exceptions
import msgspec

from actors.tokenizer.sandbox import ChatEnvironment, RaisedByTemplate, render
from protocols.errors import StartError, UserError
from protocols.request import ChatPrompt

Chat = list[dict[str, Any]]

_REASONING = ("reasoning_content", "thinking", "reasoning")
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_PROBE = "probe 6f1c of a content"
_ROLES = ("system", "developer", "user", "assistant", "tool")
_TOOL_CALL = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def _now() -> datetime.datetime:
    return datetime.datetime.now()


class ChatTemplate:
    """The chat templates of one model.

    sources: name -> Jinja text; "default" is the ordinary one, "tool_use" is taken for requests with
    tools. special_tokens: variables such as `bos_token`. Raises StartError for a template that is not Jinja.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime.datetime] = _now,
    ) -> None:
        environment = ChatEnvironment(now)
        self._special_tokens = dict(special_tokens)
        self._templates = {
            name: _Template(_compile(environment, name, source), source, self._special_tokens)
            for name, source in sources.items()
        }

    def render(self, prompt: ChatPrompt) -> str:
        """The prompt's text; UserError (400) with a sentence for whatever goes wrong."""
        chat = _objects(_json(prompt.messages, "messages"), "messages")
        tools = _json(prompt.tools, "tools")
        if not chat:
            raise UserError("messages must not be empty.", param="messages")
        if tools is not None:
            _objects(tools, "tools")
        values = _json(prompt.template_kwargs, "chat_template_kwargs")
        if not isinstance(values, dict):
            raise UserError("chat_template_kwargs must be an object.", param="chat_template_kwargs")
        template = self._choose(tools)
        return template.render(
            [_normalised(message) for message in chat], tools, values, continue_final=prompt.continue_final
        )

    def _choose(self, tools: object) -> _Template:
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise UserError("this model has no chat template; use /v1/completions.", param="messages")
        return self._templates[name]


class _Template:
    """One template and what it takes."""

    def __init__(self, template: jinja2.Template, source: str, special_tokens: Mapping[str, str]) -> None:
        self._template = template
        self._source = source
        self._special_tokens = special_tokens
        self._takes = functools.cache(self._probe)

    def render(self, chat: Chat, tools: Any, values: dict[str, Any], *, continue_final: bool) -> str:
        """The text for normalised messages."""
        chat = [self._fitted(message) for message in chat]
        if not continue_final:
            return self._run(chat, tools, {"add_generation_prompt": True} | values)
        if "content" not in self._source:
            raise UserError("this model's chat template cannot continue a final message.", param="messages")
        final = _tag_final(chat)
        text = self._run(chat, tools, values | {"add_generation_prompt": False})
        return _cut_at_tag(text, final)

    def _run(self, chat: Chat, tools: Any, values: Mapping[str, Any]) -> str:
        values = {
            **self._special_tokens,
            "documents": None,
            **values,
            "messages": chat,
            "tools": tools,
        }
        try:
            return render(self._template, values)
        except RaisedByTemplate as error:
            raise UserError(f"the chat template refused: {error}", param="messages") from error
        except jinja2.exceptions.SecurityError as error:
            raise UserError("the chat template did something unsafe.", param="messages") from error
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template failed: {error}.", param="messages") from error
        except Exception as error:  # a template can raise anything, and it is never this actor's bug
            kind = type(error).__name__
            raise UserError(
                f"the chat template could not render these messages ({kind}).", param="messages"
            ) from error

    def _fitted(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with a content of the form that the template knows for its role."""
        content = message.get("content")
        role = message.get("role")
        role = role if role in _ROLES else "user"
        if isinstance(content, list) and not self._takes(role, listed=True):
            return message | {"content": "\n".join(part["text"] for part in content)}
        if (
            isinstance(content, str)
            and not self._takes(role, listed=False)
            and self._takes(role, listed=True)
        ):
            return message | {"content": [{"type": "text", "text": content}]}
        return message

    def _probe(self, role: str, *, listed: bool) -> bool:
        content = [{"type": "text", "text": _PROBE}] if listed else _PROBE
        chat: Chat = [{"role": role, "content": content}]
        match role:
            case "system" | "developer":
                chat = [*chat, {"role": "user", "content": "b"}]
            case "assistant":
                chat = [{"role": "user", "content": "b"}, *chat]
            case "tool":
                call = {"role": "assistant", "content": "", "tool_calls": [_TOOL_CALL]}
                chat[0] |= {"tool_call_id": "call00000", "name": "f"}
                chat = [{"role": "user", "content": "b"}, call, *chat]
            case _:
                pass
        try:
            text = self._run(chat, None, {"add_generation_prompt": False})
        except UserError:
            return False
        quoted = listed and (f"'{_PROBE}'" in text or f'"{_PROBE}"' in text)
        return _PROBE in text and not quoted


def _compile(environment: ChatEnvironment, name: str, source: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", 0)
        raise StartError(
            f"the model's chat template {name!r} is not valid, line {line}: {error.message}."
        ) from error


def _json(text: bytes, name: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{name} is not valid JSON.", param=name) from error


def _objects(value: Any, name: str) -> Chat:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{name} must be a list of objects.", param=name)
    return value


def _normalised(message: dict[str, Any]) -> dict[str, Any]:
    """A copy without nulls, with parts of text, objects as arguments and all names of its reasoning."""
    message = {key: value for key, value in message.items() if value is not None}
    if isinstance(message.get("content"), list):
        message["content"] = [_text_part(part) for part in message["content"]]
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [_with_arguments(call) for call in message["tool_calls"]]
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _text_part(part: object) -> dict[str, str]:
    match part:
        case str(text):
            return {"type": "text", "text": text}
        case {"type": "text" | "input_text" | "output_text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": str(kind)}:
            raise UserError(
                f"this model takes text; a content part of type {kind[:40]!r} does not work.",
                param="messages",
            )
        case _:
            raise UserError("a content part must be an object with a type.", param="messages")


def _with_arguments(call: Any) -> Any:
    """The tool call with its arguments as an object, where they are the JSON of one."""
    match call:
        case {"function": {"arguments": str(text)} as function}:
            try:
                arguments = msgspec.json.decode(text or "{}")
            except (msgspec.DecodeError, RecursionError):
                return call
            if not isinstance(arguments, dict):
                return call
            return call | {"function": function | {"arguments": arguments}}
        case _:
            return call


def _tag_final(chat: Chat) -> str:
    """Mark the end of the last message's text; returns that text. Changes `chat`."""
    message = chat[-1]
    match message.get("content"):
        case str(text):
            chat[-1] = message | {"content": text + _CONTINUE_TAG}
            return text
        case [*parts] if parts:
            text = str(parts[-1]["text"])
            tagged = [*parts[:-1], parts[-1] | {"text": text + _CONTINUE_TAG}]
            chat[-1] = message | {"content": tagged}
            return text
        case _:
            raise UserError("the final message has no text to continue.", param="messages")


def _cut_at_tag(text: str, final: str) -> str:
    """The text up to the tag; where the template trimmed the message, trimmed as well."""
    at = text.rfind(_CONTINUE_TAG.strip())
    if at < 0 or final.strip() not in text:
        raise UserError("the chat template does not keep the final message, so it cannot be continued.")
    kept = text[:at]
    return kept if text.startswith(_CONTINUE_TAG, at) else kept.rstrip()
