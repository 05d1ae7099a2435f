"""Pausing and resuming generation, draining, slowing down, changing settings, and flushing the prefix
cache."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from actors.control.fields import choice, number, time_for, typed
from actors.control.progress import until_none
from protocols.board import Column
from protocols.config import Speculate
from protocols.errors import VerbError, several
from protocols.orders import Adjust, Continue, Drain, Flush, Flushed, Freeze, Frozen, Pause, Paused
from protocols.standing import PauseMode, Settings
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.verbs import Verb

KINDS = ("executor", "scheduler", "tokenizer", "frontend", "balancer")
MOST_DELAY = 60.0
"""Seconds before each step."""


async def pause(root: Root, request: Request, _more: Send) -> Reply:
    """Launch no more steps. Answers when none is in the air; a scheduler that dies meanwhile, or later, comes
    back paused."""
    mode, seconds = choice(request, "mode", PauseMode, PauseMode.ABORT), time_for(request)
    with root.alone("another change"):
        if root.standing.paused is not None:
            raise VerbError(
                "conflict", f"generation is paused already ({root.standing.paused.value}): resume it first."
            )
        root.decide(paused=mode)
        answers = await root.insist_all("scheduler", Pause(mode), seconds)
    paused = [answer for answer in answers.values() if isinstance(answer, Paused)]
    running, waiting = sum(each.running for each in paused), sum(each.waiting for each in paused)
    return {"mode": mode.value, "running": running, "waiting": waiting}


async def resume(root: Root, request: Request, _more: Send) -> Reply:
    """Generate again, and let requests in again."""
    seconds = time_for(request)
    with root.alone("another change"):
        mode, draining = root.standing.paused, root.standing.draining
        if mode is None and not draining:
            raise VerbError("conflict", "generation is not paused.")
        if root.standing.released:
            raise VerbError(
                "conflict", f"memory is released ({', '.join(root.standing.released)}): take it again first."
            )
        root.decide(paused=None, draining=False)
        await root.insist_all("scheduler", Continue(), seconds)
        await root.insist_all("frontend", Drain(False), seconds)
    return {"mode": mode.value if mode is not None else "drain"}


async def drain(root: Root, request: Request, more: Send) -> Reply:
    """Let no new request in. Answers when all that were open have ended."""
    seconds = time_for(request)
    with root.alone("another change"):
        if root.standing.draining:
            raise VerbError("conflict", "the company is draining already: resuming ends that.")
        root.decide(draining=True)
        await root.insist_all("frontend", Drain(True), seconds)
    await _until_none(root, "frontend", Column.OPEN_REQUESTS, request, more, "no new ones are let in")
    return {"mode": "drain", "open": 0}


async def rest(root: Root, request: Request, more: Send) -> None:
    """Wait until nothing runs. Raises VerbError where that takes too long."""
    await _until_none(
        root, "scheduler", Column.RUNNING, request, more, "generation stays paused for new ones"
    )


async def _until_none(
    root: Root, kind: str, column: Column, request: Request, more: Send, meanwhile: str
) -> None:
    """Wait until nobody of a kind counts anything in a column."""

    async def count() -> int:
        return sum(root.row(name)[column] for name in root.actors(kind))

    seconds, paused = time_for(request), root.standing.paused
    held = paused not in (None, PauseMode.WAIT)
    end = f"to end, while generation is paused ({paused})" if held else "to end"
    if left := await until_none(count, "request", end, seconds, more):
        why = " They end once generation is resumed." if held else ""
        raise VerbError(
            "timeout", f"still open after {seconds:g} s: {several(left, 'request')}; {meanwhile}.{why}"
        )


async def slow_down(root: Root, request: Request, _more: Send) -> Reply:
    """Have every executor wait so many seconds before each step; 0 for none."""
    return await _adjust(root, request, {"step_delay": number(request, "seconds", 0.0, most=MOST_DELAY)})


async def change(root: Root, request: Request, _more: Send) -> Reply:
    """Change settings while the company serves; null for as it was started."""
    names = {field.name for field in msgspec.structs.fields(Settings)}
    changes = request.get("settings")
    if not isinstance(changes, dict) or not changes or not changes.keys() <= names:
        raise VerbError("usage", f"settings must be some of {', '.join(sorted(names))}.")
    return await _adjust(root, request, changes)


async def _adjust(root: Root, request: Request, changes: Mapping[str, object]) -> Reply:
    seconds = time_for(request)
    with root.alone("another change"):
        values = {**msgspec.to_builtins(root.standing.settings), **changes}
        settings = typed(values, Settings)
        _check(root, settings)
        root.decide(settings=settings)
        for kind in ("executor", "scheduler"):
            await root.insist_all(kind, Adjust(settings), seconds)
    return {"settings": msgspec.to_builtins(settings)}


def _check(root: Root, settings: Settings) -> None:
    config, tokens, rows = root.config, settings.speculate_tokens, settings.speculate_rows
    if not 0 <= settings.step_delay <= MOST_DELAY:
        raise VerbError("usage", f"step_delay must be from 0 to {MOST_DELAY:g} seconds.")
    if (tokens, rows) != (None, None) and config.speculate is Speculate.OFF:
        raise VerbError("conflict", "the company was started without --speculate.")
    if tokens is not None and not 0 <= tokens <= config.speculate_tokens:
        raise VerbError("usage", f"speculate_tokens must be from 0 to {config.speculate_tokens}.")
    if rows is not None and not 0 <= rows <= config.chunk_size:
        raise VerbError("usage", f"speculate_rows must be from 0 to {config.chunk_size}.")


async def freeze(root: Root, request: Request, _more: Send) -> Reply:
    """Have every actor collect its garbage, and never look again at what is left."""
    frozen: dict[str, int] = {}
    for kind in KINDS:
        for name, answer in (await root.insist_all(kind, Freeze(), time_for(request))).items():
            assert isinstance(answer, Frozen)
            frozen[name] = answer.objects
    return {"objects": frozen}


async def flush(root: Root, request: Request, _more: Send) -> Reply:
    """Forget every cached prefix that no running request uses."""
    answers = await root.insist_all("scheduler", Flush(), time_for(request))
    flushed = [answer for answer in answers.values() if isinstance(answer, Flushed)]
    return {"pages": sum(each.pages for each in flushed), "kept": sum(each.kept for each in flushed)}


VERBS: Mapping[str, Verb] = {
    "engine.pause": pause,
    "engine.resume": resume,
    "engine.drain": drain,
    "engine.slow-down": slow_down,
    "engine.set": change,
    "engine.freeze-gc": freeze,
    "engine.flush-cache": flush,
}
