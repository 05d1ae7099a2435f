"""Drops a conversation's earliest turns until its prompt fits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from protocols.request import ChatPrompt


async def latest(
    prompt: ChatPrompt,
    render: Callable[[ChatPrompt], Awaitable[str]],
    fits: Callable[[str], Awaitable[bool]],
) -> str:
    """The text of the longest form of `prompt` that fits, or of its shortest. What is left begins with a
    user; what the system says stays, and so does the last turn of a user and all behind it.

    The whole is tried first, as it mostly fits, and then a binary search. Raises what `render` raises.
    """
    whole = await render(prompt)
    if await fits(whole):
        return whole
    forms = shorter_forms(prompt)
    if not forms:
        return whole
    first, last = 0, len(forms) - 1
    while first < last:
        middle = (first + last) // 2
        if await fits(await render(forms[middle])):
            last = middle
        else:
            first = middle + 1
    return await render(forms[first])


def shorter_forms(prompt: ChatPrompt) -> list[ChatPrompt]:
    """`prompt` from each later turn of a user on, longest first."""
    messages = msgspec.json.decode(prompt.messages)
    kept = [message for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    starts = [i for i, turn in enumerate(turns) if i and turn["role"] == "user"]
    return [
        msgspec.structs.replace(prompt, messages=msgspec.json.encode([*kept, *turns[start:]]))
        for start in starts
    ]
