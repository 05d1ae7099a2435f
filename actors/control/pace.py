"""Pausing generation and going on, and forgetting cached prefixes."""

from __future__ import annotations

from collections.abc import Mapping

from actors.control.fields import choice, number
from protocols.errors import VerbError
from protocols.orders import Continue, Flush, Flushed, Pause, Paused, PauseMode
from runtime.admin import Reply, Request, Send
from runtime.root import ORDER_SECONDS, Root
from runtime.verbs import Verb

LONGEST = 3600.0
"""Seconds that anybody may be asked to wait."""


async def pause(root: Root, request: Request, _more: Send) -> Reply:
    """Launch no more steps. Answers when none is in the air; a scheduler that dies meanwhile, or later, comes
    back paused."""
    mode = choice(request, "mode", PauseMode, PauseMode.ABORT)
    seconds = number(request, "timeout", ORDER_SECONDS, most=LONGEST)
    with root.alone("another change"):
        if root.standing.paused is not None:
            raise VerbError("conflict", f"generation is paused already ({root.standing.paused.value}).")
        root.decide(paused=mode)
        answers = await root.insist_all("scheduler", Pause(mode), seconds)
    paused = [answer for answer in answers.values() if isinstance(answer, Paused)]
    running, waiting = sum(each.running for each in paused), sum(each.waiting for each in paused)
    return {"mode": mode.value, "running": running, "waiting": waiting}


async def resume(root: Root, request: Request, _more: Send) -> Reply:
    """Generate again."""
    seconds = number(request, "timeout", ORDER_SECONDS, most=LONGEST)
    with root.alone("another change"):
        mode = root.standing.paused
        if mode is None:
            raise VerbError("conflict", "generation is not paused.")
        root.decide(paused=None)
        await root.insist_all("scheduler", Continue(), seconds)
    return {"mode": mode.value}


async def flush(root: Root, request: Request, _more: Send) -> Reply:
    """Forget every cached prefix that no running request uses."""
    seconds = number(request, "timeout", ORDER_SECONDS, most=LONGEST)
    answers = await root.insist_all("scheduler", Flush(), seconds)
    flushed = [answer for answer in answers.values() if isinstance(answer, Flushed)]
    return {"pages": sum(each.pages for each in flushed), "kept": sum(each.kept for each in flushed)}


VERBS: Mapping[str, Verb] = {
    "engine.pause": pause,
    "engine.resume": resume,
    "engine.flush-cache": flush,
}
