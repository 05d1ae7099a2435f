"""What an administrator may ask of a company: the table behind the admin socket."""

from __future__ import annotations

from typing import Protocol

from runtime.admin import Reply, Request, Send, Verb, VerbError


class Root(Protocol):
    """What the verbs need of the supervisor."""

    def status(self) -> Reply:
        """The company and all its actors."""

    def tree(self) -> Reply:
        """The supervision tree."""

    def stop(self, reason: str, *, at_once: bool) -> Reply:
        """End the company."""

    def keys(self) -> Reply:
        """The API keys and what they have used."""

    def reload_keys(self) -> Reply:
        """Read the key file again."""

    def replace(self, name: str, *, gently: bool) -> Reply:
        """Replace an actor by its next incarnation."""


def text(request: Request, key: str) -> str:
    """A field that must be there and be text."""
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise VerbError("usage", f"this verb needs {key!r}.")
    return value


def table(root: Root) -> dict[str, Verb]:
    """Every verb by its name."""

    async def status(_request: Request, _more: Send) -> Reply:
        return root.status()

    async def tree(_request: Request, _more: Send) -> Reply:
        return root.tree()

    async def stop(request: Request, _more: Send) -> Reply:
        return root.stop("an administrator asked for it", at_once=bool(request.get("now")))

    async def kill(request: Request, _more: Send) -> Reply:
        return root.replace(text(request, "name"), gently=False)

    async def restart(request: Request, _more: Send) -> Reply:
        return root.replace(text(request, "name"), gently=True)

    async def keys(_request: Request, _more: Send) -> Reply:
        return root.keys()

    async def reload_keys(_request: Request, _more: Send) -> Reply:
        return root.reload_keys()

    return {
        "keys.list": keys,
        "keys.reload": reload_keys,
        "status": status,
        "tree": tree,
        "stop": stop,
        "actor.kill": kill,
        "actor.restart": restart,
    }
