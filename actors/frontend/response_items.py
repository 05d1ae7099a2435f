"""The output of a response, item by item: pieces of the answer in, events out; sans-I/O.

A thought is an item `reasoning`, text is a `message`, and each call of a function an item of its own. One
item is open at a time: a piece of another kind closes it and opens the next. All ids are made of one key, so
whoever makes the events again makes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from actors.answers.pieces import CallArguments, CallBegun, CallEnded, Thought
from actors.frontend.answer_format import AnswerFormat
from actors.frontend.prompts import Message, function_call
from actors.frontend.response_events import Delta, Said, delta_head
from actors.frontend.sealed import seal
from protocols.openai.logprobs import TokenLogprob
from protocols.openai.responses import (
    FunctionCallItem,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
)

Made = tuple[str, dict[str, Any]]
"""Kind of an event, without its `response.`, and its fields."""


class Items:
    """The items of one response. done: those that are complete. sealed: thoughts have their
    `encrypted_content`."""

    def __init__(self, answer_format: AnswerFormat, key: str, *, sealed: bool = False) -> None:
        self._sealed = sealed
        self.done: list[OutputItem] = []
        self._answer_format, self._key = answer_format, key
        self._open: OutputItem | None = None
        self._parts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._head = b""

    @property
    def empty(self) -> bool:
        """Whether there is no item yet."""
        return self._open is None and not self.done

    def say(self, said: Said) -> Iterator[Made | Delta]:
        """The events of a text."""
        if not isinstance(self._open, OutputMessage):
            yield from self._need(OutputMessage)
        self._logprobs += said.logprobs
        yield self.say_on(said.text, said.logprobs)

    def say_on(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Delta:
        """More text of the message that is open."""
        self._parts.append(text)
        return Delta(text, logprobs, self._head)

    def take(self, piece: Thought | CallBegun | CallArguments | CallEnded) -> Iterator[Made]:
        """The events of what is not text."""
        match piece:
            case Thought(text):
                yield from self._need(ReasoningItem)
                yield self._delta("reasoning_text.delta", text, content_index=0)
            case CallBegun(index, name):
                yield from self.close("completed")
                call_id = self._answer_format.call_id(self._key, index)
                yield from self._begin(
                    FunctionCallItem(id=f"fc_{self._key}{index:04x}", call_id=call_id, name=name)
                )
            case CallArguments(_, text):
                yield self._delta("function_call_arguments.delta", text)
            case CallEnded():
                yield from self.close("completed")

    def close(self, status: str) -> Iterator[Made]:
        """Complete the open item, if there is one."""
        item, text = self._open, "".join(self._parts)
        if item is None:
            return
        item.status = status
        match item:
            case ReasoningItem():
                yield "reasoning_text.done", {**self._place(content_index=0), "text": text}
                self._fill(item, text)
                yield "content_part.done", {**self._place(content_index=0), "part": item.content[0]}
            case OutputMessage():
                fields = {"text": text, "logprobs": self._logprobs}
                yield "output_text.done", {**self._place(content_index=0), **fields}
                item.content = [OutputText(text=text, logprobs=self._logprobs)]
                yield "content_part.done", {**self._place(content_index=0), "part": item.content[0]}
            case FunctionCallItem(name=name):
                item.arguments = text
                yield "function_call_arguments.done", {**self._place(), "name": name, "arguments": text}
        yield "output_item.done", {"output_index": len(self.done), "item": item}
        self.done.append(item)
        self._open = None

    def left(self, failed: bool) -> list[OutputItem]:
        """The open item, incomplete, where a failure cut it off; else nothing."""
        item = self._open
        if item is None or not failed:
            return []
        text = "".join(self._parts)
        item.status = "incomplete"
        match item:
            case ReasoningItem():
                self._fill(item, text)
            case OutputMessage():
                item.content = [OutputText(text=text, logprobs=self._logprobs)]
            case FunctionCallItem():
                item.arguments = text
        return [item]

    def _fill(self, item: ReasoningItem, thought: str) -> None:
        item.content = [ReasoningText(text=thought)]
        if self._sealed:
            item.encrypted_content = seal(thought)

    def no_text(self) -> Iterator[Made]:
        """Add a message without text."""
        yield from self._need(OutputMessage)

    def _need(self, kind: type[ReasoningItem] | type[OutputMessage]) -> Iterator[Made]:
        if isinstance(self._open, kind):
            return
        yield from self.close("completed")
        number = len(self.done)
        key = f"{self._key}{number:02x}" if number else self._key
        if kind is ReasoningItem:
            yield from self._begin(ReasoningItem(id=f"rs_{key}"))
            yield "content_part.added", {**self._place(content_index=0), "part": ReasoningText()}
        else:
            self._head = delta_head(f"msg_{key}", number)
            yield from self._begin(OutputMessage(id=f"msg_{key}", status="in_progress", content=[]))
            yield "content_part.added", {**self._place(content_index=0), "part": OutputText()}

    def _begin(self, item: OutputItem) -> Iterator[Made]:
        self._open, self._parts, self._logprobs = item, [], []
        yield "output_item.added", {"output_index": len(self.done), "item": item}

    def _delta(self, kind: str, text: str, **fields: Any) -> Made:
        self._parts.append(text)
        return kind, {**self._place(**fields), "delta": text}

    def _place(self, **fields: Any) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open.id, "output_index": len(self.done), **fields}


def answered(items: Sequence[OutputItem]) -> tuple[Message, int]:
    """Items as the message that a later turn continues, and how many characters they have."""
    text = thought = ""
    calls: list[Message] = []
    for item in items:
        match item:
            case OutputMessage():
                text += "".join(part.text for part in item.content)
            case ReasoningItem():
                thought += "".join(part.text for part in item.content)
            case FunctionCallItem():
                calls.append(function_call(item.call_id, item.name, item.arguments, "arguments"))
    message: Message = {"role": "assistant", "content": text}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message, len(text) + len(thought) + len(msgspec.json.encode(calls)) * bool(calls)
