"""What an administrator may ask of any company; those of its own kind it brings along (`Company.verbs`)."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping

from protocols.errors import VerbError
from runtime import admin
from runtime.admin import Reply, Request, Send
from runtime.root import Root

Verb = Callable[[Root, Request, Send], Awaitable[Reply]]
"""Carries out a request, and may tell progress meanwhile. Raises VerbError to refuse it."""


def text(request: Request, key: str) -> str:
    """A field that must be there and be text."""
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise VerbError("usage", f"this verb needs {key!r}.")
    return value


async def status(root: Root, _request: Request, _more: Send) -> Reply:
    """The company and all its actors."""
    return root.status()


async def tree(root: Root, _request: Request, _more: Send) -> Reply:
    """The supervision tree."""
    return root.tree()


async def stop(root: Root, request: Request, _more: Send) -> Reply:
    """End the company."""
    now = request.get("now", False)
    if not isinstance(now, bool):
        raise VerbError("usage", "now must be true or false.")
    return root.stop("an administrator asked for it", at_once=now)


async def kill(root: Root, request: Request, _more: Send) -> Reply:
    """SIGKILL an actor."""
    return root.replace(text(request, "name"), gently=False)


async def restart(root: Root, request: Request, _more: Send) -> Reply:
    """Replace an actor once it has finished what it does."""
    return root.replace(text(request, "name"), gently=True)


async def keys(root: Root, _request: Request, _more: Send) -> Reply:
    """The API keys and what they have used."""
    return root.keys()


async def reload_keys(root: Root, _request: Request, _more: Send) -> Reply:
    """Read the key file again."""
    return root.reload_keys()


VERBS: Mapping[str, Verb] = {
    "keys.list": keys,
    "keys.reload": reload_keys,
    "status": status,
    "tree": tree,
    "stop": stop,
    "actor.kill": kill,
    "actor.restart": restart,
}


def table(root: Root, own: Mapping[str, Verb]) -> dict[str, admin.Verb]:
    """Every verb by its name, also the company's `own`, for the admin socket."""
    return {name: functools.partial(verb, root) for name, verb in {**VERBS, **own}.items()}
