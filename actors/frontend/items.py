"""The input of a response as a list of items, page by page: `/v1/responses/{id}/input_items`.

Items are made of the conversation that the response answers, what it continued included, so any frontend that
finds the response tells the same, with the same ids.
"""

from __future__ import annotations

from typing import Any

import msgspec

from actors.frontend.live import LiveResponse
from actors.frontend.prompts import Message
from protocols.errors import UserError
from protocols.openai.responses import ItemList

MAX_PAGE = 100
DEFAULT_PAGE = 20

Item = dict[str, Any]


def page(live: LiveResponse, query: dict[str, str]) -> ItemList:
    """The page that `limit`, `order` ("desc" by default), `after` and `before` ask for. Raises UserError."""
    if live.asked is None:
        raise UserError("The input of this response was too long to be kept.", status=404, code="not_found")
    found = _items(live.asked.messages, live.id.rpartition("_")[2])
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise UserError("order must be 'asc' or 'desc'.", param="order")
    if order == "desc":
        found.reverse()
    ids = [item["id"] for item in found]
    start = _place(ids, query["after"], "after") + 1 if "after" in query else 0
    end = _place(ids, query["before"], "before") if "before" in query else len(found)
    limit = _limit(query.get("limit", str(DEFAULT_PAGE)))
    data = found[start:end][:limit]
    return ItemList(
        data=data,
        first_id=data[0]["id"] if data else None,
        last_id=data[-1]["id"] if data else None,
        has_more=len(found[start:end]) > limit,
    )


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_PAGE:
        raise UserError(f"limit must be between 1 and {MAX_PAGE}.", param="limit")
    return int(text)


def _place(ids: list[str], id: str, param: str) -> int:
    try:
        return ids.index(id)
    except ValueError:
        raise UserError(f"{param} names no item of this response.", param=param) from None


def _items(messages: tuple[Message, ...], mark: str) -> list[Item]:
    """All items in the order of the conversation. mark: makes their ids this response's own."""
    items: list[Item] = []
    for message in messages:
        items += _of_message(message)
    return [{"id": f"{_PREFIX[item['type']]}{mark}_{i}", **item} for i, item in enumerate(items)]


_PREFIX = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_", "function_call_output": "fco_"}


def _of_message(message: Message) -> list[Item]:
    role, text = message["role"], message["content"]
    if role == "tool":
        call_id = message.get("tool_call_id", "")
        return [{"type": "function_call_output", "status": "completed", "call_id": call_id, "output": text}]
    calls = [_call(call) for call in message.get("tool_calls", ())]
    thoughts = [_thought(message["reasoning_content"])] if "reasoning_content" in message else []
    if calls and not text:
        return thoughts + calls
    kind = "output_text" if role == "assistant" else "input_text"
    part = {"type": kind, "text": text} | ({"annotations": []} if role == "assistant" else {})
    said = {"type": "message", "status": "completed", "role": role, "content": [part]}
    return [*thoughts, said, *calls]


def _thought(text: str) -> Item:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "status": "completed", "summary": [], "content": content}


def _call(call: Message) -> Item:
    function = call["function"]
    return {
        "type": "function_call",
        "status": "completed",
        "call_id": call["id"],
        "name": function["name"],
        "arguments": msgspec.json.encode(function["arguments"]).decode(),
    }
