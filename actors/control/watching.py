"""Metrics and events of the company. No actor is asked."""

from __future__ import annotations

import time
from collections.abc import Mapping

import trio

from actors.control.fields import flag, number
from actors.control.rates import rates
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.verbs import Verb


async def metrics(root: Root, request: Request, _more: Send) -> Reply:
    """Prometheus's text, or with `families` the same as values."""
    return {"metrics": root.sight.families()} if flag(request, "families") else {"text": root.sight.metrics()}


async def watch(root: Root, request: Request, more: Send) -> Reply:
    """The company at each `interval` seconds, with rates, and in between what happens as it happens: the
    notices after number `since`. `looks`: how often, 0 for ever."""
    interval = number(request, "interval", 1.0, least=0.1, most=60.0)
    looks = number(request, "looks", 0.0, most=1e6)
    seen = int(number(request, "since", 0.0, most=2**53))
    before, looked = root.status(), time.monotonic()
    await more({"status": {**before, "actors": rates(before, before, interval)}, **root.tree()})
    done = 0
    while not looks or done < looks:
        deadline = looked + interval
        while (left := deadline - time.monotonic()) > 0:
            seen = await _tell(root, more, seen)
            with trio.move_on_after(left):
                await root.sight.news()
        seen = await _tell(root, more, seen)
        now, at = root.status(), time.monotonic()
        await more({"status": {**now, "actors": rates(before, now, at - looked)}, **root.tree()})
        before, looked, done = now, at, done + 1
    return {}


async def _tell(root: Root, more: Send, seen: int) -> int:
    news = root.sight.since(seen)
    if news:
        await more({"events": news})
    return news[-1]["number"] if news else seen


VERBS: Mapping[str, Verb] = {"metrics": metrics, "watch": watch}
