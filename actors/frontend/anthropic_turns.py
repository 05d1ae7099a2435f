"""The turns of a conversation in Anthropic's shapes, as the chat template sees them."""

from __future__ import annotations

from collections.abc import Sequence

from actors.frontend import prompts
from protocols.errors import UserError
from protocols.openai.chat import Part
from protocols.openai.messages import AnthropicMessage, Block


def messages_of(turn: AnthropicMessage, where: str) -> list[prompts.Message]:
    """One turn, as one message or several: the outputs of calls come before what the user says."""
    if isinstance(turn.content, str):
        return [{"role": _role(turn, where), "content": turn.content}]
    if _role(turn, where) == "assistant":
        return [_assistant(turn.content, f"{where}.content")]
    return _user(turn.content, f"{where}.content")


def text_of(content: str | Sequence[Block], where: str) -> str:
    """The text of a content of nothing else; raises UserError."""
    if isinstance(content, str):
        return content
    return prompts.text_of([Part(type=block.type, text=block.text) for block in content], where)


def _role(turn: AnthropicMessage, where: str) -> str:
    if turn.role not in ("user", "assistant"):
        raise UserError(f"{where}.role must be user or assistant.", param=f"{where}.role")
    return turn.role


def _assistant(blocks: Sequence[Block], where: str) -> prompts.Message:
    texts, thought, calls = [], "", []
    for i, block in enumerate(blocks):
        match block.type:
            case "tool_use":
                calls.append(_call(block, f"{where}[{i}]"))
            case "thinking":
                thought += block.thinking or ""
            case "redacted_thinking":
                pass
            case _:
                texts.append(block)
    message: prompts.Message = {"role": "assistant", "content": text_of(texts, where)}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _user(blocks: Sequence[Block], where: str) -> list[prompts.Message]:
    texts = [block for block in blocks if block.type != "tool_result"]
    outputs = [
        _output(block, f"{where}[{i}]") for i, block in enumerate(blocks) if block.type == "tool_result"
    ]
    said = [{"role": "user", "content": text_of(texts, where)}] if texts or not outputs else []
    return outputs + said


def _call(block: Block, where: str) -> prompts.Message:
    if block.name is None:
        raise UserError(f"{where} has no name.", param=f"{where}.name")
    return prompts.function_call(block.id, block.name, block.input, where)


def _output(block: Block, where: str) -> prompts.Message:
    if block.tool_use_id is None:
        raise UserError(f"{where} has no tool_use_id.", param=f"{where}.tool_use_id")
    text = text_of(block.content or "", f"{where}.content")
    if block.is_error:
        text = f"Error: {text}"
    return {"role": "tool", "content": text, "tool_call_id": block.tool_use_id}
