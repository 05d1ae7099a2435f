"""What a shell may complete besides commands and options: names that the running companies know.

A shell must not wait, and nobody wants to read why there is nothing to complete: whatever goes wrong, there
is nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import click

from protocols.errors import TroupeError
from runtime import admin

SECONDS = 1.0

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def companies(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Names of the companies that run."""
    with contextlib.suppress(OSError):
        return [name for name in admin.names() if name.startswith(begun)]
    return []


def _asking(verb: str, names: Callable[[dict[str, Any]], list[str]]) -> Complete:
    def complete(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
        where = admin.address(context.params.get("name") or "troupe", context.params.get("socket") or "")
        with contextlib.suppress(TroupeError, TimeoutError, OSError):
            reply = admin.ask(where, {"verb": verb}, timeout=SECONDS)
            return [name for name in names(reply) if name.startswith(begun)]
        return []

    return complete


actors = _asking("status", lambda reply: [each["name"] for each in reply["actors"]])
adapters = _asking("lora.list", lambda reply: [each["name"] for each in reply["adapters"]])
requests = _asking("request.list", lambda reply: [each["id"] for each in reply["requests"]])
