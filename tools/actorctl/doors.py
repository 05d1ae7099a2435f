"""The options of `actorctl serve` that say who may come in, and how much of the company one client may
take."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click
import msgspec

from protocols.config import Config
from protocols.errors import StartError
from runtime.tls import server_context
from tools.actorctl.sizes import ByteSize

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?")
_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(Config)}


def _seconds(name: str, help: str, *, least: float = 0.1) -> Any:
    default = _DEFAULTS[name.replace("-", "_")]
    range_ = click.FloatRange(least, 86400)
    return click.option(f"--{name}", type=range_, default=default, show_default=True, help=help)


_OPTIONS = (
    click.option(
        "--api-key", "api_keys", multiple=True, envvar="TROUPE_API_KEY", help="A bearer key; repeatable."
    ),
    click.option(
        "--keys",
        "keys_file",
        default="",
        envvar="TROUPE_KEYS",
        help="TOML file of keys and their limits; `actorctl keys` writes it and has it read again.",
    ),
    click.option(
        "--cors-origin",
        "origins",
        multiple=True,
        help="Origin of web pages that may use the company, as http://host:port; repeatable.",
    ),
    click.option(
        "--allow-host",
        "hosts",
        multiple=True,
        help="Name by which browsers and administrators may call the company, besides addresses; repeatable.",
    ),
    click.option("--tls-cert", default="", help="PEM file of a certificate chain: serve https and wss."),
    click.option("--tls-key", default="", help="PEM file of its private key. [default: the same file]"),
    click.option(
        "--max-connections",
        type=click.IntRange(1, 60000),
        default=_DEFAULTS["max_connections"],
        show_default=True,
        help="Connections of a frontend; beyond that, the one that has been silent longest gives way.",
    ),
    click.option(
        "--max-body",
        type=ByteSize(),
        default=_DEFAULTS["max_body"],
        help="Size of a request. [default: 4MiB]",
    ),
    click.option(
        "--max-bodies",
        type=ByteSize(),
        default=_DEFAULTS["max_bodies"],
        help="Size of all requests together that a frontend holds. [default: 256MiB]",
    ),
    _seconds("head-seconds", "Time for a request's head, or a TLS handshake."),
    _seconds("body-seconds", "Time for a request's body."),
    _seconds("idle-seconds", "Time that a connection may be silent between two requests."),
    _seconds("write-seconds", "Time after which a client that reads nothing is cut off."),
    _seconds("queue-seconds", "Time within which a request has its first token, else 503; 0: any.", least=0),
    _seconds("template-seconds", "Time that the chat template may take for a request."),
    _seconds("grammar-seconds", "Time to read what an answer must be: a schema, a grammar, tools."),
)


def door_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_doors(config: Config) -> None:
    """Refuse what cannot be meant. Raises StartError."""
    for origin in config.origins:
        if not _ORIGIN.fullmatch(origin):
            raise StartError(
                f"--cors-origin {origin} is no origin: scheme, host and port exactly as a browser sends them,"
                " in lower case, as https://chat.example.com.",
                exit_code=2,
            )
    if config.tls_key and not config.tls_cert:
        raise StartError("--tls-key needs --tls-cert.", exit_code=2)
    if config.max_bodies < config.max_body:
        raise StartError("--max-bodies must be at least --max-body.", exit_code=2)
    server_context(config)
