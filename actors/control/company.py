"""Information about the company, its model, and what its actors are doing."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import msgspec

from actors.control.fields import time_for
from protocols.board import Column
from protocols.errors import VerbError
from protocols.orders import Stack, Stacked
from runtime.admin import Reply, Request, Send
from runtime.root import Root
from runtime.verbs import Verb, text

SECRETS = ("api_keys", "keys_file", "tls_key")
STACK_SECONDS = 3.0
"""How long an actor may take to answer with its stacks, before it is made to write them."""


async def server_info(root: Root, _request: Request, _more: Send) -> Reply:
    """Every option, what has changed since the start, and the company's state."""
    options = msgspec.to_builtins(root.config)
    del options["model"]["files"]
    status = root.status()
    return {
        "options": {name: value for name, value in options.items() if name not in SECRETS},
        "settings": msgspec.to_builtins(root.standing.settings),
        "paused": root.standing.paused,
        "draining": root.standing.draining,
        "released": list(root.standing.released),
        "state": status["state"],
        "uptime_seconds": status["uptime_seconds"],
    }


async def model_info(root: Root, _request: Request, _more: Send) -> Reply:
    """The model that is served."""
    card = root.config.model
    return {
        "model_path": card.path,
        "served_model_name": card.name,
        "architecture": card.architecture,
        "context": card.context,
        "vocab_size": card.vocab_size,
        "weight_version": root.standing.weights.version,
        "is_generation": True,
    }


async def stack(root: Root, request: Request, _more: Send) -> Reply:
    """The stacks of an actor. One that does not answer writes those of its threads to the company's log."""
    name = text(request, "name")
    try:
        answer = await root.order(name, Stack(), time_for(request, STACK_SECONDS))
    except VerbError as error:
        if error.code != "timeout":
            raise
        pid = root.row(name)[Column.PID]
        root.signal(name, signal.SIGUSR1)
        raise VerbError(
            "failed", f"{name} does not answer; where process {pid} stands is in the company's log."
        ) from error
    assert isinstance(answer, Stacked)
    return {"name": name, "stack": answer.text}


VERBS: Mapping[str, Verb] = {
    "server.info": server_info,
    "model.info": model_info,
    "actor.stack": stack,
}
