"""`actorctl keys ...`: make API keys, list them, and have the key file read again."""

from __future__ import annotations

import os
import pathlib
import secrets
from typing import Any

import click

from protocols.errors import StartError
from protocols.keys import digest_of, parse_keys
from tools.actorctl.output import facts, output_option, show
from tools.actorctl.target import CONFLICT, FAILED, Ask, administers, fail

PREFIX = "sk-troupe-"
_HEADINGS = (
    ("name", "NAME"),
    ("admin", "ADMIN"),
    ("concurrency", "CONCURRENCY"),
    ("tokens_per_minute", "TOKENS/MIN"),
    ("sockets", "SOCKETS"),
    ("running", "RUNNING"),
    ("connected", "CONNECTED"),
    ("spent", "TOKENS"),
)


@click.group()
def keys() -> None:
    """Make API keys, list them, and have the key file read again."""


@keys.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=pathlib.Path))
@click.argument("key_name", metavar="NAME")
@click.option("--admin", is_flag=True, help="For the administrative routes, and only for those.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Choices open at once.")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), help="Tokens of prompt and output.")
@click.option("--sockets", type=click.IntRange(min=1), help="WebSockets at once.")
@click.option("--lanes", type=click.IntRange(min=1), help="Named lanes of one WebSocket.")
@click.option("--private-cache", is_flag=True, help="Share no prefixes with other keys.")
@output_option
def add(file: pathlib.Path, key_name: str, output: str, **options: Any) -> None:
    """Add a new key NAME to FILE and print it. The file knows only its hash."""
    key = PREFIX + secrets.token_urlsafe(32)
    text = file.read_text() if file.exists() else ""
    table = [f'\n[keys."{key_name}"]', f'sha256 = "{digest_of(key)}"']
    table += [f"{name} = {_toml(value)}" for name, value in options.items() if value]
    longer = text + "\n".join(table) + "\n"
    try:
        before = {each.name for each in parse_keys(text, str(file))[1]}
        if key_name in before:
            fail(f"there is a key {key_name!r} in {file} already.", CONFLICT)
        parse_keys(longer, str(file))
    except StartError as error:
        fail(str(error), FAILED)
    _replace(file, longer)
    if output in ("table", "wide"):
        click.echo(key)
    else:
        facts({"name": key_name, "key": key}, output, key_name)
    click.echo("a running company knows it after `actorctl keys reload`.", err=True)


def _toml(value: bool | int) -> str:
    return str(value).lower()


def _replace(file: pathlib.Path, text: str) -> None:
    """Write the whole file or nothing, readable by its owner alone."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as sink:
        sink.write(text)
    part.replace(file)


@keys.command()
@output_option
@administers
def reload(ask: Ask, output: str) -> None:
    """Read the key file again: it holds for every request from now on."""
    _show(ask({"verb": "keys.reload"}), output)


@keys.command("list")
@output_option
@administers
def list_keys(ask: Ask, output: str) -> None:
    """List all keys with their limits (0: none) and what they use."""
    _show(ask({"verb": "keys.list"}), output)


def _show(document: dict[str, Any], output: str) -> None:
    show(document, document["keys"], output, headings=_HEADINGS)
